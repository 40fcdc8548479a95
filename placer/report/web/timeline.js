'use strict';
// A migration: a lane for each GPU, its steps over seconds or one after the other, and GPUs in use below.

const LANE_HEIGHT = 34, STEPS_TOP = 8, IN_USE_HEIGHT = 70, TIMELINE_WIDTH = 980;
const LANE_NAMES_WIDTH = Math.min(30 + 6.6 * Math.max(16, ...DATA.lanes.map(([name]) => name.length)), 340);
const KIND_FORMS = { start: 0, load: 1, shift: 2, unload: 4, restart: 3, stop: 5 };

function kindIndex(step) {
  return DATA.kinds.indexOf(step.kind);
}

function stepTitle(step) {
  return `step ${step.number}: ${step.kind} ${step.where}${step.adapters.length ? `; ${step.adapters.join(', ')}` : ''}; from ${number(step.start, 1)} s${step.seconds ? `, ${number(step.seconds, 1)} s long` : ''}; ${step.check}`;
}

function laneLabels(root, left, right, scale) {
  const most = Math.floor((left - 22) / 6.6);
  DATA.lanes.forEach(([name, type, first, last], lane) => {
    const middle = STEPS_TOP + (lane + 0.5) * LANE_HEIGHT;
    const shown = name.length > most ? `${name.slice(0, most - 1)}…` : name;
    root.append(svg('line', { x1: left, x2: right, y1: middle + LANE_HEIGHT / 2, y2: middle + LANE_HEIGHT / 2, class: 'grid' }),
      svg('text', { x: left - 8, y: middle + 4, class: 'tick end' }, shown, svg('title', {}, type ? `${name} (${type})` : name)));
    if (scale) root.append(svg('line', { x1: scale(first), x2: scale(last), y1: middle, y2: middle, class: 'in-use' }, svg('title', {}, `${name} is in use`)));
  });
}

function inUse(root, points, scale, left, right, top) {
  const bottom = top + IN_USE_HEIGHT, counts = points.map((point) => point[1]);
  const most = Math.max(1, ...counts) * 1.15, height = (count) => bottom - (IN_USE_HEIGHT * count) / most;
  for (const value of ticks(0, most, 3).values.filter(Number.isInteger)) {
    root.append(svg('line', { x1: left, x2: right, y1: height(value), y2: height(value), class: 'grid' }),
      svg('text', { x: left - 8, y: height(value) + 4, class: 'tick end' }, number(value)));
  }
  let path = '';
  for (const [at, count] of points) path += path ? `H${scale(at).toFixed(1)}V${height(count).toFixed(1)}` : `M${scale(at).toFixed(1)},${height(count).toFixed(1)}`;
  root.append(svg('path', { d: path || 'M0,0', class: 'line stroke-0' }), svg('line', { x1: left, x2: right, y1: bottom, y2: bottom, class: 'axis' }),
    svg('text', { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, class: 'tick middle' }, 'GPUs in use'));
  return bottom;
}

function stepBox(step, x, width, lane, label) {
  const y = STEPS_TOP + lane * LANE_HEIGHT + 5, tall = LANE_HEIGHT - 10;
  const group = svg('g', { 'data-step': step.number, class: 'selected', onclick: () => showStep(step.number) }, svg('title', {}, stepTitle(step)),
    svg('rect', { x: x.toFixed(1), y, width: Math.max(width, 1.5).toFixed(1), height: tall, class: `${step.safe ? 'outline-step' : 'outline-unsafe'} fill-${kindIndex(step)}` }));
  const fits = (text) => width > 7 * text.length + 4, text = [label, step.safe ? String(step.number) : '✗'].find(fits);
  if (text) group.append(svg('text', { x: x + width / 2, y: y + tall / 2 + 4, class: 'label middle' }, text));
  return group;
}

function shiftLines(root, step, x) {
  const middle = (lane) => STEPS_TOP + (lane + 0.5) * LANE_HEIGHT;
  for (const source of step.sources) {
    for (const target of step.lanes) {
      if (source !== target) root.append(svg('line', { x1: x, x2: x, y1: middle(source), y2: middle(target), class: 'way' }));
    }
    root.append(svg('circle', { cx: x, cy: middle(source), r: 3, class: 'way-from' }, svg('title', {}, stepTitle(step))));
  }
}

// Over seconds: what takes time is a bar, all else a mark; those at the same moment share one, with their number.
function timePicture(shown) {
  const left = LANE_NAMES_WIDTH, right = TIMELINE_WIDTH - 20, lanesEnd = STEPS_TOP + DATA.lanes.length * LANE_HEIGHT;
  const total = DATA.total_s || 1, scale = (at) => left + ((right - left) * at) / total;
  const height = lanesEnd + 16 + IN_USE_HEIGHT + 36;
  const root = svg('svg', { viewBox: `0 0 ${TIMELINE_WIDTH} ${height}`, width: TIMELINE_WIDTH, class: 'chart', role: 'img', 'aria-label': `${counted(shown.length, 'step')} of the migration over ${number(total)} seconds, by GPU` });
  laneLabels(root, left, right, scale);
  const marks = new Map();
  for (const step of shown) {
    if (!step.seconds) shiftLines(root, step, scale(step.start));
    for (const lane of step.lanes) {
      if (step.seconds) root.append(stepBox(step, scale(step.start), scale(step.start + step.seconds) - scale(step.start), lane, `${step.safe ? '' : '✗ '}${step.number} ${step.kind}`));
      else {
        const key = `${lane} ${Math.round(scale(step.start) / 8)}`;
        if (!marks.has(key)) marks.set(key, { lane, x: scale(step.start), steps: [] });
        marks.get(key).steps.push(step);
      }
    }
  }
  for (const { lane, x, steps } of marks.values()) {
    const y = STEPS_TOP + (lane + 0.5) * LANE_HEIGHT, own = [...new Set(steps.map((step) => step.kind))];
    own.forEach((kind, place) => {
      const same = steps.filter((step) => step.kind === kind), middle = y + (place - (own.length - 1) / 2) * 10;
      root.append(svg('path', { d: marker(KIND_FORMS[kind], x, middle), class: `point color-${kindIndex(same[0])} selected`, onclick: () => showStep(same[0].number) }, svg('title', {}, same.map(stepTitle).join('\n'))));
    });
    const text = steps.length > 1 ? `${steps[0].number}…${steps.at(-1).number}` : String(steps[0].number);
    root.append(svg('text', { x: x > right - 60 ? x - 9 : x + 9, y: y - 7, class: `limit-text ${x > right - 60 ? 'end' : ''}` }, steps.every((step) => step.safe) ? text : `✗ ${text}`));
  }
  const points = [[0, DATA.gpus_before], ...DATA.steps.map((step) => [step.start, step.gpus])];
  const bottom = inUse(root, [...points, [total, points.at(-1)[1]]], scale, left, right, lanesEnd + 16);
  const { step, values } = ticks(0, total, 8);
  for (const value of values) root.append(svg('line', { x1: scale(value), x2: scale(value), y1: bottom, y2: bottom + 4, class: 'axis' }), svg('text', { x: scale(value), y: bottom + 16, class: 'tick middle' }, tickText(value, step)));
  root.append(svg('text', { x: (left + right) / 2, y: bottom + 31, class: 'tick middle' }, 'seconds'));
  return root;
}

// One column for each step that is shown, in order.
function orderPicture(shown) {
  const left = LANE_NAMES_WIDTH, each = Math.max(Math.min((TIMELINE_WIDTH - left - 20) / Math.max(shown.length, 1), 66), 4);
  const right = left + each * shown.length, lanesEnd = STEPS_TOP + DATA.lanes.length * LANE_HEIGHT, width = Math.max(right + 20, 420);
  const root = svg('svg', { viewBox: `0 0 ${width} ${lanesEnd + 16 + IN_USE_HEIGHT + 36}`, width, class: 'chart', role: 'img', 'aria-label': `${counted(shown.length, 'step')} of the migration in order, by GPU` });
  laneLabels(root, left, right, null);
  shown.forEach((step, place) => {
    shiftLines(root, step, left + (place + 0.5) * each);
    for (const lane of step.lanes) root.append(stepBox(step, left + place * each + 1, each - 2, lane, `${step.safe ? '' : '✗ '}${each > 44 ? step.kind : step.number}`));
  });
  const points = shown.map((step, place) => [place, step.gpus]);
  const bottom = inUse(root, points.length ? [...points, [shown.length, points.at(-1)[1]]] : [], (place) => left + place * each, left, right, lanesEnd + 16);
  const every = Math.ceil(24 / each);
  shown.forEach((step, place) => { if (place % every === 0) root.append(svg('text', { x: left + (place + 0.5) * each, y: bottom + 16, class: 'tick middle' }, String(step.number))); });
  root.append(svg('text', { x: (left + right) / 2, y: bottom + 31, class: 'tick middle' }, 'steps, in order'));
  return root;
}

function kindLegend() {
  return el('ul', { class: 'legend' }, DATA.kinds.filter((kind) => DATA.steps.some((step) => step.kind === kind)).map((kind) => el('li', {},
    svg('svg', { width: 44, height: 14, viewBox: '0 0 44 14', 'aria-hidden': 'true' }, svg('rect', { width: 22, height: 14, class: `fill-${DATA.kinds.indexOf(kind)}` }), svg('path', { d: marker(KIND_FORMS[kind], 34, 7), class: `point color-${DATA.kinds.indexOf(kind)}` })), kind)));
}

function timelineRows(shown) {
  return [['step', 'kind', 'where', 'adapters', 'start_s', 'seconds', 'gpus_in_use', 'is_safe', 'check'],
    ...shown.map((step) => [step.number, step.kind, step.where, step.adapters.join(' '), step.start, step.seconds, step.gpus, step.safe ? 'yes' : 'no', step.check])];
}
