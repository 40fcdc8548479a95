'use strict';
// A table that is sorted by its headings, and shows more rows when asked.

const FIRST_ROWS = 100;

/* `columns`: [{label, value: (row) => any, text: (value) => string, isNumber}]; `rows`: anything. */
function sortableTable({ name, caption, columns, rows }) {
  let shown = rows, sorted = null, isDescending = false, most = FIRST_ROWS;
  const body = el('tbody'), more = el('button', { type: 'button', class: 'more' });
  const headings = columns.map((column, index) => el('th', { scope: 'col', class: column.isNumber ? 'number' : null },
    el('button', { type: 'button', onclick: () => sortBy(index) }, column.label)));
  const cells = (row) => columns.map((column) => {
    const value = column.value(row);
    return el('td', { class: column.isNumber ? 'number' : null }, column.text ? column.text(value) : value === null || value === undefined ? '–' : String(value));
  });
  function ordered() {
    if (sorted === null) return shown;
    const { value } = columns[sorted];
    return [...shown].sort((one, other) => compareValues(value(one), value(other), isDescending));
  }
  function draw() {
    const all = ordered();
    body.replaceChildren(...all.slice(0, most).map((row) => el('tr', {}, cells(row))));
    more.hidden = all.length <= most;
    more.textContent = `show all ${number(all.length)} rows`;
  }
  function sortBy(index) {
    isDescending = sorted === index ? !isDescending : Boolean(columns[index].isNumber);
    sorted = index;
    headings.forEach((heading, position) => {
      if (position === index) heading.setAttribute('aria-sort', isDescending ? 'descending' : 'ascending');
      else heading.removeAttribute('aria-sort');
    });
    draw();
  }
  more.addEventListener('click', () => { most = Infinity; draw(); });
  const csv = () => csvText([columns.map((column) => column.label), ...ordered().map((row) => columns.map((column) => column.value(row)))]);
  const holder = el('div', { class: 'table' },
    el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
      el('table', {}, el('caption', {}, caption), el('thead', {}, el('tr', {}, headings)), body)), more,
    el('div', { class: 'keep' }, el('button', { type: 'button', 'aria-label': `${caption}: as CSV`, onclick: () => download(`${safeName(name)}.csv`, new Blob([csv()], { type: 'text/csv' })) }, 'CSV')));
  holder.show = (subset) => { shown = subset; draw(); };
  draw();
  return holder;
}

// What is not there comes last, whatever the direction.
function compareValues(one, other, isDescending) {
  const isMissing = (value) => value === null || value === undefined || value === '';
  if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
  const order = typeof one === 'number' ? one - other : String(one).localeCompare(String(other), 'en', { numeric: true });
  return isDescending ? -order : order;
}
