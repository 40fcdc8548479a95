'use strict';
// The page of a what-if study: curves over what changes, risk, break-even prices, savings, and all scenarios.

const MOST_BOUND_LINES = 2, MOST_BREAK_EVEN = 6, MOST_SAVINGS = 40;

function sweepSeries(shown, value, bound) {
  const names = [...new Set(shown.map((cell) => cell.line).filter((line) => line !== null))];
  const members = (name) => shown.filter((cell) => cell.line === name).sort((one, other) => one.x - other.x);
  const plans = names.map((name) => ({ name, points: members(name).map((cell) => [cell.x, cell.planned ? cell[value] : null]) }));
  const bounds = names.length > MOST_BOUND_LINES ? [] : names.map((name) => ({ name: name === 'plan' ? 'lower bound' : `lower bound, ${name}`, points: members(name).map((cell) => [cell.x, cell[bound]]) }));
  return [...plans, ...bounds.filter((line) => line.points.some((point) => point[1] !== null))];
}

// Logarithmic where few values would leave no room for all others.
function placesAxis(places) {
  const low = Math.min(...places), high = Math.max(...places), margin = 0.03 * (high - low || 1);
  if (low > 0 && high / low > 50) return { low: low / 1.15, high: high * 1.15, log: true, label: `${DATA.axis}, logarithmic` };
  return { low: low - margin, high: high + margin, label: DATA.axis };
}

function sweepChart(shown, value, bound, label) {
  const series = sweepSeries(shown, value, bound), cells = shown.filter((cell) => cell.line !== null);
  if (!cells.length) return el('p', { class: 'note' }, 'No scenario is shown.');
  const most = Math.max(1, ...cells.map((cell) => cell[value] || 0));
  const marks = cells.filter((cell) => !cell.planned).map((cell) => ({ x: cell.x, y: cell[value] || 0, form: cell[value] ? 0 : 6, text: `${cell.label}: ${cell.status}. ${cell.reason}` }));
  const chart = lineChart({ series, marks, markers: true, width: 760, height: 280, x: placesAxis(cells.map((cell) => cell.x)), y: { low: 0, high: most * 1.08, label }, label: `${label} over ${DATA.axis}` });
  return el('div', {}, chart, lineLegend(series.map((line) => line.name), true), marks.length ? el('p', { class: 'note' }, '× no plan at all; ○ a plan that the twin rejects') : '');
}

function riskChart(shown) {
  const cells = shown.filter((cell) => cell.risk !== null);
  if (!cells.length) return el('p', { class: 'note' }, 'No scenario is shown.');
  const counts = cells.map((cell) => cell.gpus), low = Math.min(...counts) - 1, high = Math.max(...counts) + 1;
  const drawn = axes({ width: 760, height: 300, x: { low, high, label: 'GPUs', format: (value) => (Number.isInteger(value) ? number(value) : '') }, y: { low: 0, high: 1, label: 'probability that some GPU starves', format: (value) => number(value, 1) }, label: 'Probability that some GPU starves, with its interval of 95 %, over the number of GPUs' });
  cells.forEach((cell, index) => {
    // Plans of the same size are drawn beside each other.
    const twins = cells.filter((other) => other.gpus === cell.gpus), place = twins.indexOf(cell) - (twins.length - 1) / 2;
    const x = drawn.scaleX(cell.gpus) + place * Math.min(24, 0.8 * (drawn.scaleX(1) - drawn.scaleX(0)) / twins.length), [middle, from, to] = cell.risk;
    drawn.root.append(svg('path', { d: `M${x},${drawn.scaleY(from)} V${drawn.scaleY(to)} M${x - 4},${drawn.scaleY(from)} h8 M${x - 4},${drawn.scaleY(to)} h8`, class: 'interval' }),
      svg('path', { d: marker(index, x, drawn.scaleY(middle)), class: `point color-${index % NUM_PATTERNS}` }, svg('title', {}, `${cell.label}: ${cell.gpus} GPUs, ${number(middle, 2)} (${number(from, 2)} to ${number(to, 2)})`)));
  });
  return el('div', {}, drawn.root, markerLegend(cells.map((cell) => cell.label)));
}

function breakEvenChart(record) {
  const high = 1.6 * Math.max(record.at, record.price), cost = record.other_gpus * record.other_price;
  const series = [{ name: `${counted(record.gpus, 'GPU')} ${record.type}`, points: [[0, 0], [high, record.gpus * high]] },
    { name: `${counted(record.other_gpus, 'GPU')} ${record.other} at ${number(record.other_price, 2)}`, points: [[0, cost], [high, cost]] }];
  const marks = [{ x: record.at, y: cost, form: 3, text: `break-even: ${number(record.at, 3)} per hour` }, { x: record.price, y: record.gpus * record.price, form: 2, text: `price now: ${number(record.price, 2)} per hour` }];
  return el('div', {}, lineChart({ series, marks, x: { low: 0, high, label: `price of ${record.type} (per hour)` }, y: { low: 0, high: Math.max(cost, record.gpus * high) * 1.05, label: 'cost per hour' }, label: `Cost of two fleets over the price of ${record.type}` }),
    lineLegend(series.map((line) => line.name)), el('p', { class: 'note' }, `◇ break-even at ${number(record.at, 3)}; □ price now ${number(record.price, 2)}`));
}

function savingsChart() {
  const shown = DATA.savings.slice(0, MOST_SAVINGS), left = 270, width = 760, each = 22, top = 4, bottom = top + each * shown.length;
  const saved = shown.map((entry) => entry[1]), low = Math.min(0, ...saved), high = Math.max(1, ...saved);
  const scale = (value) => left + ((width - left - 40) * (value - low)) / (high - low);
  const root = svg('svg', { viewBox: `0 0 ${width} ${bottom + 34}`, width, class: 'chart', role: 'img', 'aria-label': 'GPUs saved by each change' });
  for (const value of ticks(low, high, 6).values.filter(Number.isInteger)) root.append(svg('line', { x1: scale(value), x2: scale(value), y1: top, y2: bottom, class: 'grid' }), svg('text', { x: scale(value), y: bottom + 15, class: 'tick middle' }, number(value)));
  shown.forEach(([label, gpus, cost, isOpen], place) => {
    const y = top + place * each, from = Math.min(scale(0), scale(gpus)), text = label.length > 40 ? `${label.slice(0, 39)}…` : label;
    root.append(svg('text', { x: left - 8, y: y + 15, class: 'end' }, text, svg('title', {}, label)),
      svg('rect', { x: from, y: y + 3, width: Math.max(Math.abs(scale(gpus) - scale(0)), 1), height: each - 6, class: `outline-step fill-${gpus > 0 && isOpen ? 1 : 0}` }, svg('title', {}, `${label}: ${gpus} GPUs, ${number(cost, 2)} per hour`)),
      svg('text', { x: Math.max(scale(gpus), scale(0)) + 5, y: y + 15 }, number(gpus)));
  });
  root.append(svg('line', { x1: scale(0), x2: scale(0), y1: top, y2: bottom, class: 'axis' }), svg('text', { x: (left + width) / 2, y: bottom + 30, class: 'tick middle' }, 'GPUs saved'));
  return root;
}

function cellTable() {
  const optional = (label, name, digits) => (DATA.cells.some((cell) => cell[name] !== null) ? [{ label, value: (cell) => cell[name], text: (value) => number(value, digits), isNumber: true }] : []);
  return sortableTable({ name: 'scenarios', caption: 'Scenarios', rows: DATA.cells, columns: [
    { label: 'scenario', value: (cell) => cell.label },
    ...optional('adapters', 'adapters', 0), ...optional('offered tokens/s', 'offered', 0), ...optional('GPUs', 'gpus', 0), ...optional('lower bound', 'bound', 0),
    ...optional('cost per hour', 'cost', 2), ...optional('cost bound', 'cost_bound', 2), ...optional('worst service', 'service', 3), ...optional('ITL p95 ms', 'itl', 0), ...optional('TTFT p95 ms', 'ttft', 0),
    ...optional('metastable GPUs', 'metastable', 0), ...optional('adapters that starve', 'starved', 0),
    ...(new Set(DATA.cells.flatMap((cell) => cell.types.split(' ').map((text) => text.split('=')[0]).filter(Boolean))).size > 1 ? [{ label: 'GPUs by type', value: (cell) => cell.types }] : []),
    ...(DATA.cells.some((cell) => cell.risk) ? [{ label: 'risk', value: (cell) => cell.risk && cell.risk[0], text: (value) => number(value, 2), isNumber: true }, { label: '95 % interval', value: (cell) => cell.risk && `${number(cell.risk[1], 2)} to ${number(cell.risk[2], 2)}` }] : []),
    { label: 'verdict', value: (cell) => `${cell.planned ? '✓' : '✗'}\u00a0${cell.status}` },
    ...(DATA.cells.some((cell) => cell.reason) ? [{ label: 'reason', value: (cell) => (cell.reason.length > 90 ? `${cell.reason.slice(0, 89)}…` : cell.reason) }] : []),
  ] });
}

function cellRows(shown) {
  const names = ['status', 'adapters', 'offered', 'gpus', 'bound', 'cost', 'cost_bound', 'service', 'itl', 'ttft'];
  return [['scenario', 'line', 'x', ...names, 'probability', 'low', 'high'], ...shown.map((cell) => [cell.label, cell.line, cell.x, ...names.map((name) => cell[name]), ...(cell.risk || [null, null, null]).slice(0, 3)])];
}

function cellFigures(current) {
  const rows = () => cellRows(current()), made = [];
  if (DATA.axis !== null) {
    made.push(figure({ name: 'gpus', title: 'GPUs.', caption: 'Of the plan for each scenario, and what no plan can be below.', picture: () => sweepChart(current(), 'gpus', 'bound', 'GPUs'), rows }),
      figure({ name: 'cost', title: 'Cost.', caption: 'Of the plan for each scenario, per hour.', picture: () => sweepChart(current(), 'cost', 'cost_bound', 'cost per hour'), rows }));
  }
  if (DATA.cells.some((cell) => cell.risk)) made.push(figure({ name: 'risk', title: 'Risk.', caption: 'How often some GPU starves when rates are drawn; bars are intervals of 95 %.', picture: () => riskChart(current()), rows }));
  return made;
}

function extraFigures() {
  const made = [];
  if (DATA.break_even.length) {
    made.push(el('h2', {}, 'Break-even'), el('div', { class: 'grid-2' }, DATA.break_even.slice(0, MOST_BREAK_EVEN).map((record, place) => figure({ name: `break-even-${place}`, title: `${record.scenario}.`, caption: `Below its break-even price, the fleet of ${record.type} is the cheaper one.`, picture: () => breakEvenChart(record), rows: () => [Object.keys(record), Object.values(record)] }))));
  }
  if (DATA.savings.length) {
    made.push(el('h2', {}, 'What each change saves'), legend([[0, 'fewer GPUs than the lower bound of the problem as it is, or none saved'], [1, 'maybe by the search: the lower bound allows as few']]),
      figure({ name: 'savings', title: 'GPUs saved.', caption: 'Against the problem as it is; below 0: more are needed.', picture: savingsChart, rows: () => [['change', 'gpus_saved', 'saved_per_hour', 'within_bound'], ...DATA.savings] }));
  }
  return made;
}

function startWhatIf(main) {
  let shown = DATA.cells;
  const pictures = cellFigures(() => shown), table = cellTable(), changes = Object.entries(DATA.choices);
  const status = el('p', { class: 'note', role: 'status', 'aria-live': 'polite', id: 'status' });
  const say = () => { status.textContent = `${number(shown.length)} of ${counted(DATA.cells.length, 'scenario')} shown`; };
  const given = (id) => document.getElementById(id).value;
  const redraw = () => {
    const text = given('text').trim().toLowerCase();
    shown = DATA.cells.filter((cell) => (given('verdict') === '' || cell.status === given('verdict'))
      && changes.every(([name], place) => given(`change-${place}`) === '' || `=${cell.changes[name] || ''}` === given(`change-${place}`))
      && (text === '' || `${cell.label} ${cell.reason}`.toLowerCase().includes(text)));
    say();
    table.show(shown);
    pictures.forEach((picture) => picture.redraw());
  };
  const form = el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() },
    el('label', { for: 'text' }, 'scenario or reason', el('input', { id: 'text', type: 'search', oninput: redraw })),
    choice('verdict', 'verdict', [['', 'any'], ...[...new Set(DATA.cells.map((cell) => cell.status))].map((name) => [name, name])], redraw),
    changes.map(([name, values], place) => choice(`change-${place}`, name.replaceAll('_', ' '), [['', 'any'], ...values.map((value) => [`=${value}`, value || 'unchanged'])], redraw)),
    el('button', { type: 'reset', onclick: () => setTimeout(redraw) }, 'all'));
  const failed = DATA.cells.filter((cell) => !cell.planned);
  say();
  main.append(cards(DATA.cards), DATA.warnings.length ? lines(DATA.warnings, 'warnings') : '', lines(DATA.lines),
    el('h2', {}, 'Scenarios'), form, status, ...pictures, table,
    ...(failed.length ? [el('h2', {}, 'Without a plan to deploy'), lines(failed.map((cell) => `${cell.label}: ${cell.status}. ${cell.reason}`))] : []),
    ...extraFigures(),
    ...DATA.tables.map((entry) => sortableTable({ name: entry.title, caption: entry.title, rows: entry.rows, columns: entry.columns.map(([label, isNumber], index) => ({ label: label.replaceAll('\n', ' '), value: (row) => row[index], isNumber })) })));
}
