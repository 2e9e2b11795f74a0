// Charts, by uPlot, in the page's colours, as wide as there is room.

import uPlot from './lib/uplot.js';
import { html, useEffect, useRef } from './ui.js';

const dark = matchMedia('(prefers-color-scheme: dark)');

/** A colour of the style sheet, as it is now. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const clockWithSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium', hourCycle: 'h23' });
const day = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric' });

/** Times along an axis, as finely as they lie. */
function times(plot, splits, _axis, _space, step) {
  const format = step >= 86_400 ? day : step >= 60 ? clock : clockWithSeconds;
  // One that would be cut off at the edge is left out.
  const last = plot.over.clientWidth - 26;
  return splits.map((at) => (plot.valToPos(at, 'x') > last ? '' : format.format(at * 1000)));
}

function axis(values, size) {
  return {
    stroke: () => colour('--muted'),
    font: '11px system-ui, sans-serif',
    grid: { stroke: () => colour('--line'), width: 1 },
    ticks: { show: false },
    values,
    size,
  };
}

/** An area below a line fades out towards the axis. */
export function fading(name) {
  return (plot) => {
    const { top, height } = plot.bbox;
    const gradient = plot.ctx.createLinearGradient(0, top, 0, top + height);
    gradient.addColorStop(0, colour(`${name}-soft`));
    gradient.addColorStop(1, colour(`${name}-none`));
    return gradient;
  };
}

/** What stays as it is until the next point. */
export const stepped = uPlot.paths.stepped({ align: 1 });

/** From the first to the last point, so many seconds at least: one alone has no width. */
function wide(times, seconds) {
  const end = times.at(-1) ?? Date.now() / 1000;
  return [Math.min(times[0] ?? end, end - seconds), end];
}

/**
 * A chart over time. `label` is what it says to those who don't see it. `series` are uPlot's; `value` writes a figure; it is
 * at least `seconds` wide;
 * `hooks` are uPlot's too. `onReady(plot)` gets the chart itself.
 */
export function Chart({ label, data, series, height, value, axisWidth = 56, seconds = 10, range, hooks, cursor, onReady }) {
  const place = useRef();
  const plot = useRef();
  useEffect(() => {
    const element = place.current;
    const options = {
      width: Math.max(element.clientWidth, 50),
      height,
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false }, ...cursor },
      scales: { x: { time: true, range: ({ data: [times] }) => wide(times, seconds) }, y: { range: range ?? ((_, low, high) => [Math.min(0, low), Math.max(1, high * 1.15)]) } },
      axes: [{ ...axis(times, 26), space: 70 }, axis((_, splits) => splits.map(value), axisWidth)],
      series: [{}, ...series],
      hooks: { ...hooks },
    };
    plot.current = new uPlot(options, data, element);
    onReady?.(plot.current);
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(element.clientWidth, 50), height }));
    resized.observe(element);
    const recoloured = () => plot.current.redraw(false);
    dark.addEventListener('change', recoloured);
    return () => {
      dark.removeEventListener('change', recoloured);
      resized.disconnect();
      plot.current.destroy();
      plot.current = undefined;
    };
    // A chart is made anew only when it has other lines.
  }, [series.length, height]);
  useEffect(() => plot.current?.setData(data), [data]);
  return html`<div class="chart" ref=${place} role="img" aria-label=${label} style=${{ height: `${height}px` }}></div>`;
}
