'use strict';
// Lines and bars over an axis, as SVG.

const MARKS = ['', '6 3', '2 3', '8 3 2 3', '12 4', '1 2', '4 1'];

function niceStep(range, most) {
  const raw = range / most || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * size).find((step) => step >= raw * 0.999);
}

function ticks(low, high, most) {
  const step = niceStep(high - low, most);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step + 0; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  return { step, values: found };
}

function tickText(value, step) {
  const digits = Math.max(0, Math.min(4, -Math.floor(Math.log10(step) + 1e-9)));
  return number(Math.abs(value) < 1e-12 ? 0 : value, digits);
}

/* Axes with their grid; returns the group to draw in, and the scales.
   `x` and `y`: {low, high, label, format}; a logarithmic axis has `log`. */
function axes({ width = 520, height = 200, x, y, label }) {
  const left = 64, right = 14, top = 10, bottom = 38;
  const scale = (axis, from, to) => {
    const forward = axis.log ? Math.log10 : (value) => value;
    const low = forward(axis.low), span = forward(axis.high) - low || 1;
    return (value) => from + ((forward(value) - low) / span) * (to - from);
  };
  const scaleX = scale(x, left, width - right), scaleY = scale(y, height - bottom, top);
  const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, class: 'chart', role: 'img', 'aria-label': label });
  const values = (axis, most) => {
    if (!axis.log) return ticks(axis.low, axis.high, most).values.map((value) => [value, axis.format ? axis.format(value) : tickText(value, ticks(axis.low, axis.high, most).step)]);
    const powers = [];
    for (let power = Math.ceil(Math.log10(axis.low)); power <= Math.log10(axis.high) + 1e-9; power += 1) powers.push([10 ** power, power < 0 ? `0.${'0'.repeat(-power - 1)}1` : number(10 ** power)]);
    return powers;
  };
  for (const [value, text] of values(y, 4)) {
    root.append(svg('line', { x1: left, x2: width - right, y1: scaleY(value), y2: scaleY(value), class: 'grid' }),
      svg('text', { x: left - 6, y: scaleY(value) + 4, class: 'tick end' }, text));
  }
  for (const [value, text] of values(x, 6)) {
    root.append(svg('line', { x1: scaleX(value), x2: scaleX(value), y1: height - bottom, y2: height - bottom + 4, class: 'axis' }),
      svg('text', { x: scaleX(value), y: height - bottom + 16, class: 'tick middle' }, text));
  }
  root.append(svg('line', { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: 'axis' }),
    svg('text', { x: (left + width - right) / 2, y: height - 4, class: 'tick middle' }, x.label || ''),
    svg('text', { transform: `translate(9 ${(top + height - bottom) / 2}) rotate(-90)`, class: 'tick middle' }, y.label || ''));
  return { root, scaleX, scaleY, left, right: width - right, top, bottom: height - bottom };
}

/* Lines: {name, points: [[x, y | null], ...], step}. Broken where y is null. `limits`: [{value, text}] across.
   `shaded`: [low, high] of x that does not count. `marks`: single points, {x, y, form, text}. */
function lineChart({ series, x, y, label, limits = [], shaded = null, markers = false, marks = [], width, height }) {
  const drawn = axes({ x, y, label, width, height });
  if (shaded && shaded[1] > shaded[0]) {
    drawn.root.append(svg('rect', { x: drawn.scaleX(shaded[0]), width: drawn.scaleX(shaded[1]) - drawn.scaleX(shaded[0]), y: drawn.top, height: drawn.bottom - drawn.top, class: 'shaded' }));
  }
  series.forEach((line, index) => {
    let path = '', previous = null;
    for (const [px, py] of line.points) {
      if (py === null || py === undefined) { previous = null; continue; }
      const at = `${drawn.scaleX(px).toFixed(1)},${drawn.scaleY(py).toFixed(1)}`;
      if (previous === null) path += `M${at}`;
      else if (line.step) path += `H${drawn.scaleX(px).toFixed(1)}V${drawn.scaleY(py).toFixed(1)}`;
      else path += `L${at}`;
      previous = py;
      if (markers) drawn.root.append(svg('path', { d: marker(index, drawn.scaleX(px), drawn.scaleY(py)), class: `point color-${index % NUM_PATTERNS}` }, svg('title', {}, `${line.name}: ${number(px, 2)}, ${number(py, 2)}`)));
    }
    drawn.root.append(svg('path', { d: path || 'M0,0', class: `line stroke-${index % NUM_PATTERNS}`, 'stroke-dasharray': MARKS[index % MARKS.length] }));
  });
  for (const mark of marks) drawn.root.append(svg('path', { d: marker(mark.form, drawn.scaleX(mark.x), drawn.scaleY(mark.y)), class: 'point hollow' }, svg('title', {}, mark.text)));
  for (const { value, text } of limits) {
    drawn.root.append(svg('line', { x1: drawn.left, x2: drawn.right, y1: drawn.scaleY(value), y2: drawn.scaleY(value), class: 'limit' }),
      svg('text', { x: drawn.right, y: drawn.scaleY(value) - 3, class: 'tick end limit-text' }, text));
  }
  return drawn.root;
}

function barChart({ values, x, y, label, limits = [], width, height }) {
  const drawn = axes({ x, y, label, width, height });
  values.forEach((value, index) => {
    const from = drawn.scaleX(x.low + (index * (x.high - x.low)) / values.length);
    const to = drawn.scaleX(x.low + ((index + 1) * (x.high - x.low)) / values.length);
    if (value) drawn.root.append(svg('rect', { x: from.toFixed(1), width: Math.max(to - from - 0.6, 0.6).toFixed(1), y: drawn.scaleY(value).toFixed(1), height: (drawn.bottom - drawn.scaleY(value)).toFixed(1), class: 'color-5' }));
  });
  for (const { value, text } of limits) {
    drawn.root.append(svg('line', { x1: drawn.left, x2: drawn.right, y1: drawn.scaleY(value), y2: drawn.scaleY(value), class: 'limit' }),
      svg('text', { x: drawn.right, y: drawn.scaleY(value) - 3, class: 'tick end limit-text' }, text));
  }
  return drawn.root;
}

// Forms tell apart what colours tell apart, without them.
function marker(index, x, y) {
  const r = 4;
  return [
    `M${x - r},${y} a${r},${r} 0 1,0 ${2 * r},0 a${r},${r} 0 1,0 ${-2 * r},0`,
    `M${x},${y - r} L${x + r},${y + r} L${x - r},${y + r} Z`,
    `M${x - r},${y - r} H${x + r} V${y + r} H${x - r} Z`,
    `M${x},${y - r - 1} L${x + r + 1},${y} L${x},${y + r + 1} L${x - r - 1},${y} Z`,
    `M${x},${y + r} L${x + r},${y - r} L${x - r},${y - r} Z`,
    `M${x - r},${y - 1.4} H${x - 1.4} V${y - r} H${x + 1.4} V${y - 1.4} H${x + r} V${y + 1.4} H${x + 1.4} V${y + r} H${x - 1.4} V${y + 1.4} H${x - r} Z`,
    `M${x - r},${y - r} L${x + r},${y + r} M${x + r},${y - r} L${x - r},${y + r}`,
  ][index % 7];
}

// `marked`: with the marks that the lines have in a chart with `markers`.
function lineLegend(names, marked = false) {
  return el('ul', { class: 'legend' }, names.map((name, index) => el('li', {},
    svg('svg', { width: 30, height: 12, viewBox: '0 0 30 12', 'aria-hidden': 'true' },
      svg('path', { d: 'M1,6 H29', class: `line stroke-${index % NUM_PATTERNS}`, 'stroke-dasharray': MARKS[index % MARKS.length] }),
      marked ? svg('path', { d: marker(index, 15, 6), class: `point color-${index % NUM_PATTERNS}` }) : null), name)));
}

function markerLegend(names) {
  return el('ul', { class: 'legend' }, names.map((name, index) => el('li', {}, svg('svg', { width: 14, height: 14, viewBox: '0 0 14 14', 'aria-hidden': 'true' }, svg('path', { d: marker(index, 7, 7), class: `point color-${index % NUM_PATTERNS}` })), name)));
}
