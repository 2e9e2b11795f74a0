// The first page: totals, events per second, what happens now, and how far the views are.

import { Chart, fading, colour } from '../chart.js';
import { count, money, rate, timeOfDay, words } from '../format.js';
import { live, RATE_SAMPLES, useLive } from '../live.js';
import { LagChart, Health } from '../parts.js';
import { Card, Empty, Figure, accountLink, html, useMemo } from '../ui.js';

export function Overview() {
  useLive();
  const { stats } = live;
  const currencies = Object.entries(stats?.currencies ?? {});
  const events = currencies.reduce((sum, [, currency]) => sum + Number(currency.events), 0);
  return html`<h1 class="hidden">Overview</h1>
    <div class="grid overview">
      <${Card} class="hero" labelled="Events per second">
        <dl class="figures">
          <${Figure} name="Events per second" value=${rate(live.perSecond)} tone="big" />
          <${Figure} name="Events" value=${stats ? count(events) : '–'} />
          <${Figure} name="Open accounts" value=${count(stats?.accounts.open)} />
          <${Figure} name="Closed accounts" value=${count(stats?.accounts.closed)} />
        </dl>
        <${RateChart} />
      <//>
      <${Card} title="Money" class="money">
        ${currencies.length ? html`<div class="scroll"><table>
          <thead><tr><th>Currency</th><th class="number">Balance</th><th class="number wide">Paid in</th>
            <th class="number wide">Taken out</th><th class="number wide">Events</th></tr></thead>
          <tbody>${currencies.map(([code, of]) => html`<tr key=${code} data-currency=${code}>
            <th scope="row">${code}</th>
            <td class="number strong">${money(of.balance_minor, code)}</td>
            <td class="number wide">${money(of.deposited_minor, code)}</td>
            <td class="number wide">${money(of.withdrawn_minor, code)}</td>
            <td class="number wide">${count(of.events)}</td></tr>`)}</tbody></table></div>`
          : html`<${Empty}>${stats ? 'No money has moved yet.' : 'Waiting for the first figures.'}<//>`}
      <//>
      <${Feed} />
      <${LagChart} compact />
      <${Health} />
    </div>`;
}

function RateChart() {
  const { times, values } = live.rate;
  const last = times.at(-1);
  // As wide from the beginning as it will be: the line grows in from the right.
  const data = useMemo(() => {
    const missing = RATE_SAMPLES - times.length;
    const end = times[0] ?? Date.now() / 1000;
    return [[...Array.from({ length: missing }, (_, at) => end - missing + at), ...times], [...Array(missing).fill(null), ...values]];
  }, [last]);
  const series = [{ stroke: () => colour('--accent'), width: 2, fill: fading('--accent'), points: { show: false } }];
  const label = `Events per second over the last five minutes, ${rate(live.perSecond)} now, ${rate(Math.max(0, ...values))} at most`;
  return html`<${Chart} label=${label} data=${data} series=${series} height=${190} value=${rate} axisWidth=${44} />`;
}

/** What a change did, as far as it tells: it carries the account as it is, not the amount. */
function Feed() {
  return html`<${Card} title="Happening now" class="feed">
    ${live.feed.length ? html`<ol>${live.feed.map(({ id, sequence, type, time, view }) => html`
      <li key=${`${id}/${sequence}`}>
        <time datetime=${time}>${timeOfDay(time)}</time>
        <span class="what"><i class=${type}></i>${words(type)}</span>
        <a href=${accountLink(id)}>${id}</a>
        <span class="number">${money(view.balance_minor, view.currency)}</span>
      </li>`)}</ol>`
      : html`<${Empty}>${live.connection === 'live' ? 'Nothing since this page was opened.' : 'Changes show here while the connection is live.'}<//>`}
  <//>`;
}
