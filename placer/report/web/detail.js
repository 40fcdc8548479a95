'use strict';
// One GPU, looked at closely.

function values(pairs) {
  return el('dl', { class: 'values' }, pairs.filter((pair) => pair !== null).map(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

function headroomText(room) {
  if (room === null) return 'not asked';
  return room < 0 ? `< 0 %: the surrogate refuses it as it is (${room} %)` : `${room} %`;
}

function gpuDetail(index) {
  const twin = GPUS.twin[index];
  const parts = [el('div', { class: 'grid-2' },
    el('div', {}, el('h3', {}, 'Settings and load'), values([
      ['type', DATA.types[GPUS.type[index]]],
      ['slots (max_loras)', `${GPUS.num_slots[index]} of rank ${GPUS.max_rank[index]}`],
      ['adapters', number(adaptersOf(index).length)],
      ['KV cache', `${number(GPUS.kv_tokens[index])} tokens`],
      ['offered', `${number(GPUS.offered[index])} tokens/s`],
      ['predicted', `${number(GPUS.predicted[index])} tokens/s${GPUS.outside[index] ? ' (outside of what the surrogate was fitted on)' : ''}`],
      twin && ['simulated', `${number(GPUS.simulated[index])} tokens/s (${number(twin.ratio, 3)} of what arrived)`],
      twin && ['ITL p95, TTFT p95', `${number(twin.itl_ms)} ms, ${number(twin.ttft_ms)} ms`],
      twin && ['window', twin.window],
    ])),
    el('div', {}, el('h3', {}, 'Risk of starvation'), values([
      ['verdict', el('span', { class: `verdict verdict-${GPUS.verdict[index]}` }, VERDICT_TEXTS[GPUS.verdict[index]])],
      ['predicted probability', `${number(GPUS.risk[index] / 1000, 3)} (accepted below ${number(DATA.threshold, 3)})`],
      ['headroom', headroomText(GPUS.headroom[index])],
      twin && twin.service !== null ? ['worst adapter', `${percent(twin.service, 1)} of its tokens not left waiting`] : null,
      twin && ['near a limit of', twin.near.join(', ') || 'none'],
    ]), twin ? lines([...twin.reasons, ...twin.stability], 'note') : null))];
  parts.push(...(DATA.series ? seriesFigures(index) : [el('p', { class: 'note' }, 'The time series were not simulated (--no-simulate).')]), adapterTable(index));
  return el('div', { class: 'detail', role: 'region', 'aria-label': `GPU ${GPUS.name[index]}` }, parts);
}

function seriesFigures(index) {
  const series = DATA.series[index];
  if (series === null) return [el('p', { class: 'note' }, 'The twin says that this GPU does not start: there are no time series.')];
  const count = series.running.length, part = series.horizon / count;
  const x = { low: 0, high: series.horizon, label: 'simulated time (s)' };
  const points = (column, factor = 1) => column.map((value, at) => [at * part, value * factor]);
  const shaded = [0, series.warmup], name = GPUS.name[index];
  const high = (columns, least) => Math.max(least, ...columns.flat()) * 1.05;
  const rates = series.tokens.map((value) => value / part);
  const charts = [
    ['requests', 'Running and waiting requests', () => lineChart({ series: [{ name: 'running', points: points(series.running) }, { name: 'waiting', points: points(series.waiting) }], x, y: { low: 0, high: high([series.running, series.waiting], 4), label: 'requests' }, shaded, label: `${name}: running and waiting requests over time; at most ${Math.max(...series.waiting)} wait` })],
    ['kv', 'KV cache in use', () => lineChart({ series: [{ name: 'in use', points: points(series.kv, 0.1) }], x, y: { low: 0, high: 105, label: 'KV cache (%)' }, shaded, limits: [{ value: 100, text: '' }], label: `${name}: share of the KV cache in use over time` })],
    ['tokens', 'Tokens of completed requests', () => lineChart({ series: [{ name: 'completed', points: rates.map((value, at) => [(at + 0.5) * part, value]) }], x, y: { low: 0, high: high([rates, [GPUS.offered[index]]], 1), label: 'tokens/s' }, shaded, limits: [{ value: GPUS.offered[index], text: 'offered on average' }], label: `${name}: tokens per second of completed requests over time` })],
    ['loads', 'Adapters copied into slots', () => barChart({ values: series.loads, x, y: { low: 0, high: high([series.loads], 4), label: `loads in ${number(part, part < 10 ? 1 : 0)} s` }, label: `${name}: loads of adapters over time` })],
  ];
  const rows = {
    requests: () => [['time_s', 'running', 'waiting'], ...series.running.map((value, at) => [at * part, value, series.waiting[at]])],
    kv: () => [['time_s', 'kv_used_percent'], ...series.kv.map((value, at) => [at * part, value / 10])],
    tokens: () => [['from_s', 'tokens_per_s'], ...rates.map((value, at) => [at * part, Math.round(value)])],
    loads: () => [['from_s', 'loads'], ...series.loads.map((value, at) => [at * part, value])],
  };
  return [el('h3', {}, 'Over time'),
    el('p', { class: 'note' }, `Simulated anew for this page: twin, fast engine, ${number(series.horizon)} s, seed ${series.seed}${series.scenario ? `, scenario ${series.scenario}` : ''}. Grey: warm-up, which does not count. ${series.agrees}`),
    lineLegend(['running', 'waiting']),
    el('div', { class: 'grid-2' }, charts.map(([kind, title, picture]) => figure({ name: `${name}-${kind}`, title, picture, rows: rows[kind] })))];
}

function adapterTable(index) {
  const columns = [
    { label: 'adapter', value: (at) => ADAPTERS.name[at] },
    { label: 'rank', value: (at) => ADAPTERS.rank[at], isNumber: true },
    { label: 'share here', value: (at) => ADAPTERS.share[at] / 1000, text: (value) => percent(value, 1), isNumber: true },
    { label: 'requests/s', value: (at) => ADAPTERS.rps[at], text: (value) => number(value, 4), isNumber: true },
    { label: 'tokens/s', value: (at) => ADAPTERS.tps[at], text: (value) => number(value, 1), isNumber: true },
  ];
  if (DATA.series && DATA.series[index]) {
    const series = DATA.series[index], first = ADAPTERS.first[index];
    columns.push({ label: 'not left waiting', value: (at) => series.served[at - first] / 1000, text: (value) => percent(value, 1), isNumber: true },
      { label: 'loads', value: (at) => series.adapter_loads[at - first], isNumber: true });
  }
  return sortableTable({ name: `${GPUS.name[index]}-adapters`, caption: `Adapters of ${GPUS.name[index]}`, columns, rows: byRankAndLoad(index).sort((one, other) => ADAPTERS.tps[other] - ADAPTERS.tps[one]) });
}
