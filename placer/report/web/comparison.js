'use strict';
// The page of a comparison: solvers over all runs, and the search of each on one instance.

const SHORTEST_S = 0.001;

function distanceChart(runs) {
  const distances = DATA.solvers.map((solver) => {
    const own = runs.filter((run) => run.solver === solver);
    return { name: solver, count: own.length, over: own.map((run) => run.over).filter((over) => over !== null).sort((one, other) => one - other) };
  });
  const farthest = Math.max(0.05, ...distances.flatMap((entry) => entry.over)) * 100;
  const series = distances.map(({ name, count, over }) => {
    const points = over.map((value, index) => [100 * value, (100 * (index + 1)) / count]);
    return { name, step: true, points: points.length ? [[points[0][0], 0], ...points, [farthest, points.at(-1)[1]]] : [] };
  });
  return lineChart({ series, width: 760, height: 260, x: { low: 0, high: farthest, label: 'GPUs over the bound (%), at most' }, y: { low: 0, high: 102, label: 'runs (%)' }, label: 'Share of the runs of each solver that are within so much of the bound' });
}

function timeChart(runs) {
  const sizes = new Map(DATA.instances.map((instance) => [instance.name, instance.adapters]));
  const points = (solver) => runs.filter((run) => run.solver === solver && run.best_s !== null).map((run) => [sizes.get(run.instance), Math.max(run.best_s, SHORTEST_S)]);
  const all = DATA.solvers.flatMap(points);
  if (!all.length) return el('p', { class: 'note' }, 'No run found a placement.');
  const range = (values) => ({ low: 10 ** Math.floor(Math.log10(Math.min(...values))), high: 10 ** Math.ceil(Math.log10(Math.max(...values)) + 1e-9), log: true });
  const drawn = axes({ width: 760, height: 260, x: { ...range(all.map((point) => point[0])), label: 'adapters' }, y: { ...range(all.map((point) => point[1])), label: 'seconds' }, label: 'Time to the best placement over the number of adapters' });
  DATA.solvers.forEach((solver, index) => points(solver).forEach(([x, y]) => drawn.root.append(
    svg('path', { d: marker(index, drawn.scaleX(x), drawn.scaleY(y)), class: `point color-${index % NUM_PATTERNS}` }, svg('title', {}, `${solver}: ${number(x)} adapters, ${number(y, 3)} s`)))));
  return drawn.root;
}

function searchChart(runs) {
  const found = runs.filter((run) => run.found.length);
  if (!found.length) return el('p', { class: 'note' }, 'No solver found a placement.');
  const latest = Math.max(SHORTEST_S * 10, ...found.map((run) => run.end_s || 0));
  const counts = found.flatMap((run) => run.found.map((entry) => entry[1]));
  const series = found.map((run) => ({ name: `${run.solver}, seed ${run.seed}`, step: true, points: [...run.found.map(([at, gpus]) => [Math.max(at, SHORTEST_S), gpus]), [latest, run.found.at(-1)[1]]] }));
  return lineChart({ series, width: 760, height: 260, x: { low: SHORTEST_S, high: latest, log: true, label: 'seconds of the search' }, y: { low: Math.max(Math.min(...counts) - 1, 0), high: Math.max(...counts) + 1, label: 'GPUs' }, label: `GPUs of the best placement over time on ${found[0].instance}` });
}

function startComparison(main) {
  let shown = DATA.runs;
  const seconds = (value) => number(value, 3);
  const table = sortableTable({ name: 'runs', caption: 'Runs', rows: DATA.runs, columns: [
    { label: 'instance', value: (run) => run.instance },
    { label: 'solver', value: (run) => run.solver },
    { label: 'seed', value: (run) => run.seed, isNumber: true },
    { label: 'GPUs', value: (run) => run.gpus, text: number, isNumber: true },
    { label: 'over bound', value: (run) => run.over, text: (value) => percent(value, 1), isNumber: true },
    { label: 'rejected at first', value: (run) => run.rejected, text: number, isNumber: true },
    { label: 'first s', value: (run) => run.first_s, text: seconds, isNumber: true },
    { label: 'best s', value: (run) => run.best_s, text: seconds, isNumber: true },
    { label: 'evaluations', value: (run) => run.evaluations, text: number, isNumber: true },
    { label: 'ended', value: (run) => (run.status === 'placed' ? run.termination : run.status) },
    { label: 'reason', value: (run) => run.reason },
  ] });
  const distance = figure({ name: 'distance', title: 'How far from the bound.', caption: 'Runs without a placement never are; further left is better.', picture: () => distanceChart(shown), rows: () => [['instance', 'solver', 'seed', 'over_bound'], ...shown.map((run) => [run.instance, run.solver, run.seed, run.over])] });
  const time = figure({ name: 'time', title: 'How soon.', caption: 'Time until the placement that the solver ended with.', picture: () => timeChart(shown), rows: () => [['instance', 'solver', 'seed', 'best_s'], ...shown.map((run) => [run.instance, run.solver, run.seed, run.best_s])] });
  const status = el('p', { class: 'note', role: 'status', 'aria-live': 'polite', id: 'status' });
  const given = (id) => document.getElementById(id).value;
  const redraw = () => {
    const text = given('text').trim().toLowerCase();
    shown = DATA.runs.filter((run) => (given('solver') === '' || run.solver === given('solver')) && (given('outcome') === '' || run.status === given('outcome'))
      && (text === '' || run.instance.toLowerCase().includes(text)));
    status.textContent = `${number(shown.length)} of ${counted(DATA.runs.length, 'run')} shown`;
    table.show(shown);
    distance.redraw();
    time.redraw();
  };
  const outcomes = [...new Set(DATA.runs.map((run) => run.status))];
  const form = el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() },
    el('label', { for: 'text' }, 'instance', el('input', { id: 'text', type: 'search', oninput: redraw })),
    choice('solver', 'solver', [['', 'any'], ...DATA.solvers.map((solver) => [solver, solver])], redraw),
    choice('outcome', 'outcome', [['', 'any'], ...outcomes.map((outcome) => [outcome, outcome])], redraw),
    el('button', { type: 'reset', onclick: () => setTimeout(redraw) }, 'all'));
  main.append(lines(DATA.lines), DATA.warnings.length ? lines(DATA.warnings, 'warnings') : '', el('h2', {}, 'Solvers'),
    sortableTable({ name: 'solvers', caption: 'Means over all runs', rows: DATA.summary.rows, columns: DATA.summary.columns.map(([label, isNumber], index) => ({ label: label.replaceAll('\n', ' '), value: (row) => row[index], isNumber })) }),
    el('h2', {}, 'Runs'), form, status, lineLegend(DATA.solvers), distance, markerLegend(DATA.solvers), time, table,
    el('h2', {}, 'One instance'), instancePart());
  redraw();
}

function instancePart() {
  const holder = el('div'), select = choice('instance', 'instance', DATA.instances.map((instance, index) => [index, instance.name]), () => show());
  const show = () => {
    const instance = DATA.instances[holder.parentNode ? Number(document.getElementById('instance').value) : 0];
    if (!instance) return;
    const runs = DATA.runs.filter((run) => run.instance === instance.name), found = runs.filter((run) => run.found.length);
    holder.replaceChildren(lines([instance.what, `${counted(instance.adapters, 'adapter')}, family ${instance.family}`, instance.bound === null ? 'no bound is known' : `lower bound ${instance.bound} (${instance.proof})`, ...(instance.planted === null ? [] : [`a placement on ${counted(instance.planted, 'GPU')} is planted`])]),
      lineLegend(found.map((run) => `${run.solver}, seed ${run.seed}`)),
      figure({ name: `search-${instance.name}`, title: `The search on ${instance.name}.`, caption: 'GPUs of the best placement so far, before any repair.', picture: () => searchChart(runs), rows: () => [['solver', 'seed', 'seconds', 'gpus'], ...found.flatMap((run) => run.found.map(([at, gpus]) => [run.solver, run.seed, at, gpus]))] }));
  };
  show();
  return el('div', {}, el('form', { class: 'filters', onsubmit: (event) => event.preventDefault() }, select), holder);
}
