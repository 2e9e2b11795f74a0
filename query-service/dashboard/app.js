// The page: its frame, what it says of its connection, and which of its parts is shown.

import { again, behind, BEHIND_S, live, start, unlock, useLive } from './live.js';
import { counted, duration, timeOfDay } from './format.js';
import { Wheel } from './wheel.js';
import { Account } from './pages/account.js';
import { Accounts } from './pages/accounts.js';
import { Overview } from './pages/overview.js';
import { System } from './pages/system.js';
import { Transfers } from './pages/transfers.js';
import { html, isAccountId, render, useEffect, useRef, useRoute } from './ui.js';

const PAGES = [
  { path: undefined, href: '#/', name: 'Overview' },
  { path: 'accounts', href: '#/accounts', name: 'Accounts' },
  { path: 'transfers', href: '#/transfers', name: 'Transfers' },
  { path: 'system', href: '#/system', name: 'System' },
];

const CONNECTION = {
  connecting: ['wait', 'Connecting'],
  live: ['good', 'Live'],
  polling: ['warn', 'Delayed'],
  lost: ['bad', 'Offline'],
  locked: ['warn', 'Locked'],
};

function App() {
  const { path, parameters } = useRoute();
  const main = useRef();
  const place = path.join('/');
  const shown = useRef(place);
  useEffect(() => {
    if (shown.current === place) return;
    shown.current = place;
    scrollTo(0, 0);
    main.current.focus({ preventScroll: true });
  }, [place]);
  const [page, id] = path;
  const name = PAGES.find((one) => one.path === page)?.name;
  useEffect(() => {
    document.title = `${id ?? name ?? 'Not found'} · Millrace`;
  }, [id, name]);
  return html`
    <a class="skip" href=${location.hash || '#/'} onClick=${(event) => (event.preventDefault(), main.current.focus())}>
      To the content</a>
    <${Top} page=${page} />
    <main ref=${main} tabindex="-1">
      <${Locked} />
      ${page === undefined ? html`<${Overview} />`
        : page === 'accounts' && isAccountId(id) ? html`<${Account} key=${id} id=${id} />`
          : page === 'accounts' && id === undefined ? html`<${Accounts} parameters=${parameters} />`
            : page === 'transfers' && id === undefined ? html`<${Transfers} parameters=${parameters} />`
              : page === 'system' ? html`<${System} />`
                : html`<p class="empty">There is no such page. <a href="#/">Overview</a></p>`}
    </main>
    <footer><a href="docs">The API of these figures</a></footer>
    <${Notices} />`;
}

function Top({ page }) {
  const { connection } = useLive();
  const [tone, text] = CONNECTION[connection];
  return html`<header class="top">
    <a class="brand" href="#/"><${Wheel} /> Millrace</a>
    <nav aria-label="Pages">
      ${PAGES.map((one) => html`<a href=${one.href} aria-current=${one.path === page ? 'page' : undefined}>${one.name}</a>`)}
    </nav>
    <span class="connection ${tone}" data-connection=${connection}><i></i>${text}</span>
  </header>`;
}

/** What somebody who looks at the figures must know about them. */
function notices() {
  const said = [];
  const at = live.answeredAt && timeOfDay(live.answeredAt);
  if (live.connection === 'lost') {
    const text = at ? `No connection to query-service. The figures are of ${at}.` : 'No connection to query-service yet.';
    said.push({ tone: 'bad', spoken: 'No connection.', text, action: html`<button onClick=${again}>Try now</button>` });
    return said;
  }
  if (live.connection === 'polling') {
    said.push({ tone: 'warn', spoken: 'Live updates are interrupted; figures are asked for every second.' });
  }
  const missing = Object.entries(live.health?.parts ?? {}).filter(([, part]) => !part.ready).map(([name]) => NAMES[name] ?? name);
  if (missing.length) {
    const spoken = `Not answering: ${missing.join(', ')}.`;
    const old = live.health.parts.redis?.ready === false && live.statsAt;
    said.push({ tone: 'bad', spoken, text: old ? `${spoken} The figures are of ${timeOfDay(live.statsAt)}.` : spoken });
  }
  if (live.statsProblem?.name === 'rebuilding') {
    said.push({ tone: 'warn', spoken: BUILDING, text: progress(live.statsProblem.problem.progress) });
  }
  const lag = behind(live.projections);
  if (lag && lag.seconds >= BEHIND_S) {
    const text = `The projector is ${duration(lag.seconds)} behind (${counted(lag.records, 'record')}).`;
    said.push({ tone: 'warn', spoken: 'The projector is behind.', text });
  }
  return said;
}

const NAMES = { kafka: 'Kafka', redis: 'Redis', registry: 'the schema registry' };

const BUILDING = 'The views are being built; there are no figures until then.';

function progress(progress) {
  const { partitions_live: ready, partitions } = progress ?? {};
  return partitions ? `${BUILDING} ${ready} of ${partitions} partitions are ready.` : BUILDING;
}

/** At the lower edge, over the page: nothing moves when one comes or goes. */
function Notices() {
  useLive();
  const said = notices();
  // Read out when one comes or goes, not whenever a figure in it changes.
  return html`<p class="hidden" role="status">${said.map(({ spoken }) => spoken).join(' ')}</p>
    <div class="notices">
      ${said.map(({ tone, spoken, text = spoken, action }) => html`<div class="notice ${tone}" key=${spoken}>
        <span>${text}</span>${action}</div>`)}
    </div>`;
}

function Locked() {
  const { connection, tokenRefused } = useLive();
  const input = useRef();
  useEffect(() => input.current?.focus(), [connection]);
  if (connection !== 'locked') return null;
  const submit = (event) => {
    event.preventDefault();
    unlock(new FormData(event.target).get('token').trim());
    event.target.reset();
  };
  return html`<form class="card locked" onSubmit=${submit}>
    <h1>Token</h1>
    <p>This service answers those who carry its token (<code>MILLRACE_API_TOKEN</code>). It is kept in this tab only.</p>
    <label for="token">Token</label>
    <div class="row"><input id="token" name="token" type="password" autocomplete="off" required ref=${input} />
      <button class="primary">Go on</button></div>
    <p class="trouble" role="alert">${tokenRefused && 'That token is not accepted.'}</p>
  </form>`;
}

start();
render(html`<${App} />`, document.getElementById('app'));
