'use strict';
// Elements, numbers and downloads. Texts of files reach the page as text nodes only.

const DATA = JSON.parse(document.getElementById('data').textContent);
const SVG_SPACE = 'http://www.w3.org/2000/svg';
const NUM_PATTERNS = 7;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG_SPACE, tag), attributes, children);
}

function number(value, digits = 0) {
  if (value === null || value === undefined) return '–';
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function percent(value, digits = 0) {
  return value === null || value === undefined ? '–' : `${number(100 * value, digits)} %`;
}

function counted(count, noun) {
  return count === 1 ? `1 ${noun}` : `${number(count)} ${noun}s`;
}

function csvCell(value) {
  let text = value === null || value === undefined ? '' : String(value);
  // A spreadsheet would take a text that begins like this for a formula.
  if (typeof value === 'string' && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvText(rows) {
  return rows.map((row) => row.map(csvCell).join(',')).join('\n') + '\n';
}

function safeName(text) {
  return text.replace(/[^A-Za-z0-9._-]+/g, '_');
}

function download(name, blob) {
  const link = el('a', { download: name, href: URL.createObjectURL(blob) });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A picture on its own knows neither the page's styles nor its patterns: both are written into a copy of it.
function standalone(picture) {
  const copy = picture.cloneNode(true);
  const originals = [picture, ...picture.querySelectorAll('*')];
  const used = new Set();
  [copy, ...copy.querySelectorAll('*')].forEach((node, index) => {
    const style = getComputedStyle(originals[index]);
    for (const name of ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'font-size', 'font-family', 'text-anchor', 'opacity']) {
      node.setAttribute(name, style.getPropertyValue(name).replaceAll('"', "'"));
    }
    const pattern = /url\(['"]?#([\w-]+)/.exec(style.fill);
    if (pattern) {
      used.add(pattern[1]);
      node.setAttribute('fill', `url(#${pattern[1]})`);
    }
  });
  const box = picture.viewBox.baseVal;
  const background = getComputedStyle(document.body).backgroundColor;
  copy.prepend(svg('rect', { x: box.x, y: box.y, width: box.width, height: box.height, fill: background }));
  copy.prepend(svg('defs', {}, [...used].map((id) => standalonePattern(document.getElementById(id)))));
  copy.setAttribute('xmlns', SVG_SPACE);
  copy.setAttribute('width', box.width);
  copy.setAttribute('height', box.height);
  return new XMLSerializer().serializeToString(copy);
}

function standalonePattern(pattern) {
  const copy = pattern.cloneNode(true);
  [...copy.children].forEach((node, index) => {
    const style = getComputedStyle(pattern.children[index]);
    for (const name of ['fill', 'stroke', 'stroke-width']) node.setAttribute(name, style.getPropertyValue(name));
  });
  return copy;
}

function downloadPng(name, picture) {
  const image = new Image();
  image.addEventListener('load', () => {
    const canvas = el('canvas', { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(`${name}.png`, blob));
  });
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(picture))}`;
}

// A picture with its caption, and its numbers and pixels to keep.
function figure({ name, title, picture, rows, caption = '' }) {
  const file = safeName(name);
  const holder = el('figure', { 'data-figure': name }, el('figcaption', {}, el('strong', {}, title), caption ? ` ${caption}` : ''));
  const frame = el('div', { class: 'frame' }, picture());
  const current = () => frame.querySelector('svg');
  const buttons = el('div', { class: 'keep' },
    el('button', { type: 'button', 'aria-label': `${title}: numbers as CSV`, onclick: () => download(`${file}.csv`, new Blob([csvText(rows())], { type: 'text/csv' })) }, 'CSV'),
    el('button', { type: 'button', 'aria-label': `${title}: picture as PNG`, onclick: () => downloadPng(file, current()) }, 'PNG'),
    el('button', { type: 'button', 'aria-label': `${title}: picture as SVG`, onclick: () => download(`${file}.svg`, new Blob([standalone(current())], { type: 'image/svg+xml' })) }, 'SVG'));
  holder.append(frame, buttons);
  holder.redraw = () => frame.replaceChildren(picture());
  return holder;
}

// Hatching tells apart what colours tell apart, without them.
function addPatterns() {
  const lines = [
    [],
    [['M0,8 L8,0', 'M-2,2 L2,-2', 'M6,10 L10,6']],
    [['M4,4 m-1.6,0 a1.6,1.6 0 1,0 3.2,0 a1.6,1.6 0 1,0 -3.2,0']],
    [['M0,0 L8,8', 'M-2,6 L2,10', 'M6,-2 L10,2']],
    [['M0,4 L8,4']],
    [['M0,0 L8,8', 'M0,8 L8,0']],
    [['M4,0 L4,8']],
  ];
  const patterns = lines.map((paths, index) => svg('pattern', { id: `pattern-${index}`, width: 8, height: 8, patternUnits: 'userSpaceOnUse' },
    svg('rect', { width: 8, height: 8, class: `color-${index}` }),
    paths.flat().map((path) => svg('path', { d: path, class: 'hatch' }))));
  document.body.prepend(svg('svg', { class: 'patterns', width: 0, height: 0, 'aria-hidden': 'true' }, svg('defs', {}, patterns)));
}

function legend(entries) {
  return el('ul', { class: 'legend' }, entries.map(([position, text]) => el('li', {},
    svg('svg', { width: 22, height: 12, viewBox: '0 0 22 12', 'aria-hidden': 'true' }, svg('rect', { width: 22, height: 12, class: `fill-${position % NUM_PATTERNS}` })), text)));
}

function lines(texts, className = '') {
  return el('ul', { class: className }, texts.map((text) => el('li', {}, text)));
}

function choice(id, label, options, onchange) {
  return el('label', { for: id }, label, el('select', { id, onchange }, options.map(([value, text]) => el('option', { value }, text))));
}
