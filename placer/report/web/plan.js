'use strict';
// The page of a plan: what it amounts to, the fleet, and how to look for GPUs.

let SHOWN = GPUS.name.map((_, index) => index);
const ROWS = [];
const FLEET = el('ul', { class: 'fleet', role: 'list', 'aria-label': 'GPUs' });
const STATUS = el('p', { class: 'note', role: 'status', 'aria-live': 'polite', id: 'status' });

const ORDERS = {
  plan: ['order of the plan', (index) => index, 1],
  name: ['name', (index) => GPUS.name[index], 1],
  load: ['most load', (index) => GPUS.offered[index], -1],
  headroom: ['least headroom', (index) => GPUS.headroom[index], 1],
  risk: ['most risk', (index) => GPUS.risk[index], -1],
  adapters: ['most adapters', (index) => ADAPTERS.first[index + 1] - ADAPTERS.first[index], -1],
  kv: ['fullest KV cache', (index) => GPUS.kv_max[index], -1],
};

function gpuRow(index) {
  const bars = [el('div', { class: 'bar' }), el('div', { class: 'bar' })];
  const toggle = el('button', { type: 'button', class: 'name', 'aria-expanded': 'false', onclick: () => toggleGpu(index) }, GPUS.name[index]);
  const row = el('li', { 'data-gpu': index }, el('div', { class: 'gpu' },
    el('div', {}, toggle, el('div', { class: 'facts' }, `${DATA.types[GPUS.type[index]]}, ${counted(ADAPTERS.first[index + 1] - ADAPTERS.first[index], 'adapter')}, ${counted(GPUS.num_slots[index], 'slot')} of rank ${GPUS.max_rank[index]}`)),
    ...bars,
    el('div', {}, el('div', { class: `verdict verdict-${GPUS.verdict[index]}` }, VERDICT_TEXTS[GPUS.verdict[index]]),
      el('div', { class: 'facts' }, `${number(GPUS.offered[index])} tokens/s, headroom ${GPUS.headroom[index] === null ? '–' : GPUS.headroom[index] < 0 ? '< 0 %' : `${GPUS.headroom[index]} %`}, risk ${number(GPUS.risk[index] / 1000, 2)}`))));
  row.toggle = toggle;
  row.draw = () => {
    if (!bars[0].firstChild) {
      bars[0].append(loadBar(index));
      bars[1].append(memoryBar(index));
    }
  };
  return row;
}

function toggleGpu(index, isOpen = null) {
  const row = ROWS[index], detail = row.querySelector('.detail');
  const opens = isOpen === null ? !detail || detail.hidden : isOpen;
  if (opens && !detail) row.append(gpuDetail(index));
  else if (detail) detail.hidden = !opens;
  row.toggle.setAttribute('aria-expanded', String(opens));
}

function openGpu(index) {
  toggleGpu(index, true);
  ROWS[index].draw();
  ROWS[index].scrollIntoView({ block: 'start' });
  ROWS[index].toggle.focus({ preventScroll: true });
}

function filterForm(redraw) {
  const form = el('form', { class: 'filters', role: 'search', onsubmit: (event) => event.preventDefault() },
    el('label', { for: 'text' }, 'GPU or adapter ( / )', el('input', { id: 'text', type: 'search', oninput: redraw })),
    choice('rank', 'rank', [['', 'any'], ...DATA.ranks.map((rank) => [rank, `has rank ${rank}`])], redraw),
    choice('type', 'GPU type', [['', 'any'], ...DATA.types.map((type, index) => [index, type])], redraw),
    choice('verdict', 'verdict', [['', 'any'], ...Object.entries(VERDICT_TEXTS)], redraw),
    el('label', { for: 'headroom' }, 'headroom at most (%)', el('input', { id: 'headroom', type: 'number', oninput: redraw })),
    choice('order', 'order', Object.entries(ORDERS).map(([value, [text]]) => [value, text]), redraw),
    el('button', { type: 'reset', onclick: () => setTimeout(redraw) }, 'all'));
  return form;
}

function chosen() {
  const given = (id) => document.getElementById(id).value;
  const text = given('text').trim().toLowerCase(), room = given('headroom');
  const has = (index, test) => adaptersOf(index).some(test);
  const keeps = (index) => (given('type') === '' || GPUS.type[index] === Number(given('type')))
    && (given('verdict') === '' || GPUS.verdict[index] === given('verdict'))
    && (room === '' || (GPUS.headroom[index] !== null && GPUS.headroom[index] <= Number(room)))
    && (given('rank') === '' || has(index, (at) => ADAPTERS.rank[at] === Number(given('rank'))))
    && (text === '' || GPUS.name[index].toLowerCase().includes(text) || has(index, (at) => ADAPTERS.name[at].toLowerCase().includes(text)));
  const [, value, sign] = ORDERS[given('order')];
  return GPUS.name.map((_, index) => index).filter(keeps).sort((one, other) => compareValues(value(one), value(other), sign < 0) || one - other);
}

function startPlan(main) {
  const pictures = [
    figure({ name: 'fleet', title: 'The fleet.', caption: 'A column for each GPU: the tokens/s that its adapters offer, by rank. The line across is its capacity, as the surrogate sees it: the load times (1 + headroom).', picture: () => overview(SHOWN), rows: () => fleetRows(SHOWN) }),
    figure({ name: 'risk', title: 'Risk of starvation.', caption: 'By the surrogate; a GPU is accepted below the dashed line. The form is the twin’s verdict, which counts.', picture: () => riskPicture(SHOWN), rows: () => [['gpu', 'headroom_percent', 'starvation_probability', 'verdict'], ...SHOWN.map((index) => [GPUS.name[index], GPUS.headroom[index], GPUS.risk[index] / 1000, GPUS.verdict[index]])] }),
  ];
  const redraw = () => {
    SHOWN = chosen();
    const kept = new Set(SHOWN);
    ROWS.forEach((row, index) => { row.hidden = !kept.has(index); });
    FLEET.append(...SHOWN.map((index) => ROWS[index]));
    STATUS.textContent = `${number(SHOWN.length)} of ${counted(GPUS.name.length, 'GPU')} shown`;
    pictures.forEach((picture) => picture.redraw());
  };
  ROWS.push(...GPUS.name.map((_, index) => gpuRow(index)));
  FLEET.append(...ROWS);
  main.append(cards(DATA.cards), DATA.warnings.length ? lines(DATA.warnings, 'warnings') : '',
    el('h2', {}, 'The fleet'), filterForm(redraw), STATUS, legend(DATA.ranks.map((rank, index) => [index, `rank ${rank}`])), pictures[0],
    el('h2', {}, 'GPU by GPU'),
    el('p', { class: 'note' }, 'Left bar: load of each adapter, by rank; the line across is the capacity, as the surrogate sees it. Right bar: memory; the line in the KV cache is the most that was in use.'),
    legend(MEMORY_NAMES.map((name, at) => [MEMORY_PATTERNS[at], name])), FLEET,
    el('h2', {}, 'Risk'), formLegend(), pictures[1],
    el('h2', {}, 'Bounds'), lines(DATA.bounds),
    ...(DATA.one_fewer ? [el('h2', {}, 'With one GPU less'), lines(DATA.one_fewer)] : []),
    el('h2', {}, 'What was done, and who says so'), lines([...DATA.summary, ...DATA.sources]));
  STATUS.textContent = `${number(SHOWN.length)} of ${counted(GPUS.name.length, 'GPU')} shown`;
  drawWhenSeen();
  FLEET.addEventListener('keydown', moveInFleet);
  addEventListener('keydown', (event) => {
    if (event.key === '/' && !/INPUT|SELECT/.test(event.target.tagName)) {
      event.preventDefault();
      document.getElementById('text').focus();
    }
  });
}

function drawWhenSeen() {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        entry.target.draw();
        watcher.unobserve(entry.target);
      }
    }
  }, { rootMargin: '600px' });
  ROWS.forEach((row) => watcher.observe(row));
  const drawAll = () => ROWS.forEach((row) => row.draw());
  addEventListener('beforeprint', drawAll);
  matchMedia('print').addEventListener('change', (event) => { if (event.matches) drawAll(); });
}

function moveInFleet(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = event.target.closest('li[data-gpu]');
  if (!row || !event.target.classList.contains('name')) return;
  if (event.key === 'Escape') toggleGpu(Number(row.dataset.gpu), false);
  const next = step && SHOWN[SHOWN.indexOf(Number(row.dataset.gpu)) + step];
  if (next === undefined || !step) return;
  event.preventDefault();
  ROWS[next].toggle.focus();
}
