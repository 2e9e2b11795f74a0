// What every part of the page is made with.

import { h } from './lib/preact.js';
import { useEffect, useState } from './lib/hooks.js';
import htm from './lib/htm.js';

export { render } from './lib/preact.js';
export { useEffect, useMemo, useRef, useState } from './lib/hooks.js';

export const html = htm.bind(h);

/** A figure with its name. */
export function Figure({ name, value, note, tone = '', live }) {
  return html`<div class="figure ${tone}">
    <dt>${name}</dt>
    <dd class=${live ? 'live' : ''}>${value}</dd>
    ${note != null && html`<dd class="note">${note}</dd>`}
  </div>`;
}

/** A part of a page with a heading. */
export function Card({ title, aside, children, class: extra = '', labelled = title }) {
  return html`<section class="card ${extra}" aria-label=${labelled}>
    ${title && html`<header><h2>${title}</h2>${aside}</header>`}
    ${children}
  </section>`;
}

/** Open or closed, live or building: a word with a colour, never a colour alone. */
export function Badge({ tone = '', children }) {
  return html`<span class="badge ${tone}">${children}</span>`;
}

/** What to say where there is nothing, or nothing yet. */
export function Empty({ children }) {
  return html`<p class="empty">${children}</p>`;
}

/** One of several, by which a list is narrowed or ordered. */
export function Choice({ name, label, value, options, to }) {
  return html`<label class="field">${label}
    <select name=${name} value=${value} onChange=${(event) => to({ [name]: event.target.value })}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select></label>`;
}

/** The address after `#`: path and parameters. */
export function readRoute() {
  const [path, parameters] = location.hash.replace(/^#/, '').split('?');
  return { path: path.split('/').filter(Boolean).map(decoded), parameters: new URLSearchParams(parameters) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function useRoute() {
  const [route, setRoute] = useState(readRoute);
  useEffect(() => {
    const changed = () => setRoute(readRoute());
    addEventListener('hashchange', changed);
    return () => removeEventListener('hashchange', changed);
  }, []);
  return route;
}

/** What can be an id; some texts mean something else in a path. */
export const isAccountId = (text) => /^(?!\.{1,2}$|stats$|changes$)[A-Za-z0-9._:-]{1,128}$/.test(text ?? '');

export const accountLink = (id) => `#/accounts/${encodeURIComponent(id)}`;
