'use strict';
// What every page has: patterns, cards, and the page of its kind.

function cards(entries) {
  return el('dl', { class: 'cards' }, entries.map(([name, value, more]) => el('div', {}, el('dt', {}, name), el('dd', {}, value, more ? el('div', { class: 'small' }, more) : null))));
}

addPatterns();
START(document.getElementById('main'));
document.documentElement.dataset.ready = 'yes';
