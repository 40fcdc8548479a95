'use strict';
// The page of a migration: what changes, the steps over time, and each with its check.

const DETAIL = el('div', { class: 'detail', 'aria-live': 'polite', hidden: true });

function showStep(wanted) {
  const step = DATA.steps.find((entry) => entry.number === wanted);
  const facts = [['what', `${step.kind}${step.how ? `, ${step.how}` : ''}`], ['where', step.where], ['adapters', step.adapters.join(', ') || '–'],
    ['begins', `${number(step.start, 1)} s`], ['takes', step.seconds ? `${number(step.seconds, 1)} s` : 'as long as the last requests'], ['GPUs in use', number(step.gpus)], ['check', step.check]];
  DETAIL.replaceChildren(el('h3', {}, `Step ${step.number}`), el('dl', { class: 'values' }, facts.map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])), lines(step.replicas));
  DETAIL.hidden = false;
}

function stepTable() {
  return sortableTable({ name: 'steps', caption: 'Steps', rows: DATA.steps, columns: [
    { label: 'step', value: (step) => step.number, isNumber: true },
    { label: 'what', value: (step) => step.kind },
    { label: 'where', value: (step) => step.where },
    { label: 'adapters', value: (step) => step.adapters.join(', ') },
    { label: 'begins s', value: (step) => step.start, text: (value) => number(value, 1), isNumber: true },
    { label: 'seconds', value: (step) => step.seconds, text: (value) => (value ? number(value, 1) : '–'), isNumber: true },
    { label: 'GPUs in use', value: (step) => step.gpus, text: number, isNumber: true },
    { label: 'router', value: (step) => step.how },
    { label: 'check', value: (step) => `${step.safe ? '✓' : '✗'} ${step.check}${step.replicas.length ? `. ${step.replicas.join('; ')}` : ''}` },
  ] });
}

function fleetTable() {
  return sortableTable({ name: 'fleet', caption: 'GPUs of the new plan', rows: DATA.gpus, columns: [
    { label: 'GPU', value: (gpu) => gpu.name },
    { label: 'type', value: (gpu) => gpu.type },
    { label: 'adapters', value: (gpu) => gpu.adapters.length, isNumber: true },
    { label: 'ranks', value: (gpu) => gpu.ranks },
    { label: 'slots', value: (gpu) => gpu.slots, isNumber: true },
    { label: 'max rank', value: (gpu) => gpu.rank, isNumber: true },
    { label: 'offered tokens/s', value: (gpu) => gpu.offered, text: number, isNumber: true },
    { label: 'simulated tokens/s', value: (gpu) => gpu.simulated, text: number, isNumber: true },
    { label: 'headroom', value: (gpu) => gpu.headroom },
    { label: 'verdict', value: (gpu) => gpu.verdict },
    { label: 'who', value: (gpu) => gpu.adapters.join(', ') },
  ] });
}

function plainTable(caption, headings, rows) {
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, el('table', {}, el('caption', {}, caption),
    el('thead', {}, el('tr', {}, headings.map((heading) => el('th', { scope: 'col' }, heading)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, row.map((value) => el('td', {}, value)))))));
}

function stepFilters(redraw) {
  const kinds = DATA.kinds.filter((kind) => DATA.steps.some((step) => step.kind === kind));
  return el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() },
    el('label', { for: 'text' }, 'GPU or adapter', el('input', { id: 'text', type: 'search', oninput: redraw })),
    choice('kind', 'what', [['', 'any'], ...kinds.map((kind) => [kind, kind])], redraw),
    choice('safe', 'check', [['', 'any'], ['yes', 'safe'], ['no', 'not safe']], redraw),
    el('button', { type: 'reset', onclick: () => setTimeout(redraw) }, 'all'));
}

function stepsPart() {
  if (!DATA.steps.length) return [el('p', {}, 'There is nothing to do.')];
  let shown = DATA.steps;
  const table = stepTable(), status = el('p', { class: 'note', role: 'status', 'aria-live': 'polite', id: 'status' });
  const pictures = [
    figure({ name: 'timeline', title: 'Over time.', caption: 'A lane for each GPU that changes; the line in it: it is in use. Bars take their seconds; marks are done as soon as the last requests are. Dotted: requests that go to another GPU. Numbers are those of the steps; ✗ is not safe.', picture: () => timePicture(shown), rows: () => timelineRows(shown) }),
    figure({ name: 'order', title: 'One step after the other.', caption: 'The same, a column for each step; the dot is where requests come from.', picture: () => orderPicture(shown), rows: () => timelineRows(shown) }),
  ];
  const redraw = () => {
    const given = (id) => document.getElementById(id).value, text = given('text').trim().toLowerCase();
    const has = (step) => [step.where, ...step.adapters, ...[...step.lanes, ...step.sources].map((lane) => DATA.lanes[lane][0])].some((name) => name.toLowerCase().includes(text));
    shown = DATA.steps.filter((step) => (given('kind') === '' || step.kind === given('kind')) && (given('safe') === '' || step.safe === (given('safe') === 'yes')) && (text === '' || has(step)));
    status.textContent = `${number(shown.length)} of ${counted(DATA.steps.length, 'step')} shown`;
    table.show(shown);
    pictures.forEach((picture) => picture.redraw());
  };
  status.textContent = `${number(shown.length)} of ${counted(DATA.steps.length, 'step')} shown`;
  return [stepFilters(redraw), status, kindLegend(), ...pictures, DETAIL, table];
}

function startReplan(main) {
  main.append(cards(DATA.cards), DATA.warnings.length ? lines(DATA.warnings, 'warnings') : '',
    plainTable('Before and after, under the rates of now', ['', 'in place', 'new plan'], DATA.numbers),
    el('h2', {}, 'The migration'), ...stepsPart(),
    el('h2', {}, 'Limits'), lines(DATA.limits),
    plainTable('Plans that were considered', ['', 'GPUs', 'rejected', 'adapters unserved', 'changes', 'limits'],
      DATA.candidates.map((plan) => [`${plan.method}${plan.is_chosen ? ' (this one)' : ''}`, number(plan.gpus), number(plan.rejected), number(plan.unserved), plan.changes, plan.within ? 'kept' : 'exceeded'])),
    el('h2', {}, 'The fleet afterwards'), fleetTable(),
    el('h2', {}, 'In sentences'), lines(DATA.summary));
}
