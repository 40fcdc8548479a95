'use strict';
// The fleet: each GPU a bar of its adapters against its capacity, and one of its memory.

const GPUS = DATA.gpus;
const ADAPTERS = DATA.adapters;
const LOAD_WIDTH = 520, MEMORY_WIDTH = 220, BAR_HEIGHT = 20;
const MEMORY_PARTS = ['weights', 'slots', 'kv', 'rest'];
const MEMORY_NAMES = ['weights', 'LoRA slots', 'KV cache', 'rest'];
// Patterns of the parts of memory, apart from those of the first ranks.
const MEMORY_PATTERNS = [6, 3, 0, 4];

const VERDICT_TEXTS = {
  accepted: '✓ accepted', rejected: '✗ rejected', metastable: '≈ accepted, metastable', unverified: '? not simulated',
};

function capacityOf(index) {
  const room = GPUS.headroom[index];
  return room === null ? null : GPUS.offered[index] * (1 + room / 100);
}

function adaptersOf(index) {
  const found = [];
  for (let position = ADAPTERS.first[index]; position < ADAPTERS.first[index + 1]; position += 1) found.push(position);
  return found;
}

function byRankAndLoad(index) {
  return adaptersOf(index).sort((one, other) => ADAPTERS.rank[one] - ADAPTERS.rank[other] || ADAPTERS.tps[other] - ADAPTERS.tps[one]);
}

function mostLoad() {
  let most = 1;
  for (let index = 0; index < GPUS.name.length; index += 1) {
    most = Math.max(most, GPUS.offered[index], Math.min(capacityOf(index) || 0, 2 * GPUS.offered[index]));
  }
  return most;
}
const MOST_LOAD = mostLoad();

function loadBar(index) {
  const scale = LOAD_WIDTH / (MOST_LOAD * 1.02), capacity = capacityOf(index);
  const room = capacity === null ? 'capacity not asked' : `capacity by the surrogate ${number(capacity)} tokens/s`;
  const root = svg('svg', { viewBox: `0 0 ${LOAD_WIDTH} ${BAR_HEIGHT + 8}`, width: LOAD_WIDTH, role: 'img', 'aria-label': `${GPUS.name[index]}: ${number(GPUS.offered[index])} tokens/s offered by ${counted(adaptersOf(index).length, 'adapter')}; ${room}` });
  let left = 0, from = 0, rank = null;
  const labels = [];
  const close = (next) => {
    if (rank !== null && left - from > 26) labels.push(svg('text', { x: (from + left) / 2, y: BAR_HEIGHT / 2 + 8, class: 'label middle' }, `r${rank}`));
    from = left;
    rank = next;
  };
  for (const position of byRankAndLoad(index)) {
    if (ADAPTERS.rank[position] !== rank) close(ADAPTERS.rank[position]);
    const width = ADAPTERS.tps[position] * scale;
    root.append(svg('rect', { x: left.toFixed(2), y: 4, width: Math.max(width, 0.3).toFixed(2), height: BAR_HEIGHT, class: `${width > 2 ? 'segment ' : ''}fill-${DATA.ranks.indexOf(rank) % NUM_PATTERNS}` },
      svg('title', {}, `${ADAPTERS.name[position]}: rank ${rank}, ${number(ADAPTERS.tps[position], 1)} tokens/s`)));
    left += width;
  }
  close(null);
  root.append(...labels);
  if (capacity !== null) {
    const at = Math.min(capacity * scale, LOAD_WIDTH - 1.5);
    root.append(svg('line', { x1: at, x2: at, y1: 0, y2: BAR_HEIGHT + 8, class: 'capacity' }, svg('title', {}, room)));
  }
  return root;
}

function memoryBar(index) {
  const parts = MEMORY_PARTS.map((name) => GPUS[name][index]);
  const total = parts.reduce((sum, part) => sum + part, 0) || 1;
  const texts = parts.map((part, at) => `${MEMORY_NAMES[at]} ${number(part, 1)} GiB`);
  const used = GPUS.kv_max[index];
  if (used !== null) texts[2] += `, up to ${percent(used / 100)} of it in use`;
  const root = svg('svg', { viewBox: `0 0 ${MEMORY_WIDTH} ${BAR_HEIGHT + 8}`, width: MEMORY_WIDTH, role: 'img', 'aria-label': `${GPUS.name[index]}: ${texts.join(', ')}` });
  let left = 0;
  parts.forEach((part, at) => {
    const width = (MEMORY_WIDTH * part) / total;
    root.append(svg('rect', { x: left.toFixed(2), y: 4, width: width.toFixed(2), height: BAR_HEIGHT, class: `segment fill-${MEMORY_PATTERNS[at]}` }, svg('title', {}, texts[at])));
    if (at === 2 && used !== null) {
      const mark = left + (width * used) / 100;
      root.append(svg('line', { x1: mark, x2: mark, y1: 1, y2: BAR_HEIGHT + 7, class: 'capacity' }, svg('title', {}, texts[at])));
    }
    left += width;
  });
  return root;
}

// One column for each GPU that is shown, in its order.
function overview(shown) {
  const width = 1100, height = 170, bottom = 150, left = 52;
  const root = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, class: 'chart', role: 'img', 'aria-label': `Load of ${counted(shown.length, 'GPU')}, by rank, in tokens/s` });
  for (const value of ticks(0, MOST_LOAD, 4).values) {
    const y = bottom - ((bottom - 8) * value) / (MOST_LOAD * 1.02);
    root.append(svg('line', { x1: left, x2: width, y1: y, y2: y, class: 'grid' }), svg('text', { x: left - 5, y: y + 4, class: 'tick end' }, number(value)));
  }
  const each = Math.min((width - left) / Math.max(shown.length, 1), 90);
  shown.forEach((index, place) => {
    const x = left + place * each, wide = Math.max(each - (each > 4 ? 2 : 0.3), 0.4);
    const group = svg('g', { class: 'selected', onclick: () => openGpu(index) }, svg('title', {}, `${GPUS.name[index]}: ${number(GPUS.offered[index])} tokens/s, ${VERDICT_TEXTS[GPUS.verdict[index]]}`));
    let y = bottom;
    for (const [rank, tps] of loadByRank(index)) {
      const tall = ((bottom - 8) * tps) / (MOST_LOAD * 1.02);
      y -= tall;
      group.append(svg('rect', { x: x.toFixed(2), y: y.toFixed(2), width: wide.toFixed(2), height: tall.toFixed(2), class: `fill-${DATA.ranks.indexOf(rank) % NUM_PATTERNS}` }));
    }
    const capacity = capacityOf(index);
    if (capacity !== null) {
      const at = Math.max(bottom - ((bottom - 8) * capacity) / (MOST_LOAD * 1.02), 2);
      group.append(svg('line', { x1: x, x2: x + wide, y1: at, y2: at, class: 'capacity' }));
    }
    if (each > 12) group.append(svg('text', { x: x + wide / 2, y: bottom + 14, class: 'middle' }, VERDICT_TEXTS[GPUS.verdict[index]][0]));
    root.append(group);
  });
  root.append(svg('line', { x1: left, x2: width, y1: bottom, y2: bottom, class: 'axis' }));
  return root;
}

function loadByRank(index) {
  const sums = new Map();
  for (const position of adaptersOf(index)) sums.set(ADAPTERS.rank[position], (sums.get(ADAPTERS.rank[position]) || 0) + ADAPTERS.tps[position]);
  return [...sums].sort((one, other) => one[0] - other[0]);
}

// How close to starvation each GPU is, by the surrogate: both axes of it, the form by the twin's verdict.
function riskPicture(shown) {
  const rooms = shown.map((index) => GPUS.headroom[index]).filter((room) => room !== null);
  const low = Math.min(0, ...rooms), high = Math.max(5, ...rooms);
  const drawn = axes({ width: 700, height: 240, x: { low, high, label: 'headroom (%)' }, y: { low: 0, high: 1, label: 'probability of starvation', format: (value) => number(value, 1) }, label: 'Predicted probability of starvation over headroom, one mark per GPU' });
  const forms = Object.keys(VERDICT_TEXTS);
  for (const index of shown) {
    if (GPUS.headroom[index] === null) continue;
    const form = forms.indexOf(GPUS.verdict[index]);
    drawn.root.append(svg('path', { d: marker(form, drawn.scaleX(GPUS.headroom[index]), drawn.scaleY(GPUS.risk[index] / 1000)), class: `point color-${[2, 4, 1, 6][form]} selected`, onclick: () => openGpu(index) },
      svg('title', {}, `${GPUS.name[index]}: ${VERDICT_TEXTS[GPUS.verdict[index]]}, headroom ${GPUS.headroom[index]} %, probability of starvation ${GPUS.risk[index] / 1000}`)));
  }
  drawn.root.append(svg('line', { x1: drawn.left, x2: drawn.right, y1: drawn.scaleY(DATA.threshold), y2: drawn.scaleY(DATA.threshold), class: 'limit' }));
  return drawn.root;
}

function formLegend() {
  return el('ul', { class: 'legend' }, Object.values(VERDICT_TEXTS).map((text, form) => el('li', {},
    svg('svg', { width: 14, height: 14, viewBox: '0 0 14 14', 'aria-hidden': 'true' }, svg('path', { d: marker(form, 7, 7), class: `point color-${[2, 4, 1, 6][form]}` })), text)));
}

function fleetRows(shown) {
  const heading = ['gpu', 'type', 'verdict', 'adapters', 'slots', 'max_lora_rank', 'offered_tps', 'capacity_tps', 'simulated_tps', 'headroom_percent', 'starvation_probability', 'weights_gib', 'slots_gib', 'kv_cache_gib', 'rest_gib', ...DATA.ranks.map((rank) => `rank_${rank}_tps`)];
  return [heading, ...shown.map((index) => {
    const loads = new Map(loadByRank(index)), capacity = capacityOf(index);
    return [GPUS.name[index], DATA.types[GPUS.type[index]], GPUS.verdict[index], adaptersOf(index).length, GPUS.num_slots[index], GPUS.max_rank[index], GPUS.offered[index], capacity === null ? null : Math.round(capacity), GPUS.simulated[index], GPUS.headroom[index], GPUS.risk[index] / 1000, ...MEMORY_PARTS.map((name) => GPUS[name][index]), ...DATA.ranks.map((rank) => Math.round(loads.get(rank) || 0))];
  })];
}
