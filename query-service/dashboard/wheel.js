// The wheel in the page's corner: it turns as fast as events come.

import { live, useLive } from './live.js';
import { html, useEffect, useRef } from './ui.js';

const still = matchMedia('(prefers-reduced-motion: reduce)');

export function Wheel() {
  useLive();
  const wheel = useRef();
  const turning = useRef();
  useEffect(() => {
    if (still.matches) return undefined;
    const turn = [{ transform: 'rotate(0deg)' }, { transform: 'rotate(360deg)' }];
    turning.current = wheel.current.animate(turn, { duration: 12_000, iterations: Infinity });
    return () => turning.current.cancel();
  }, []);
  const perSecond = live.connection === 'live' || live.connection === 'polling' ? (live.perSecond ?? 0) : 0;
  useEffect(() => {
    turning.current?.updatePlaybackRate(Math.min(Math.log2(1 + perSecond), 10));
  }, [perSecond]);
  return html`<svg class="wheel" viewBox="0 0 32 32" aria-hidden="true" ref=${wheel}>
    <circle cx="16" cy="16" r="9" /><circle class="hub" cx="16" cy="16" r="2" />
    <path d="M16 16V3M16 16l9.2-9.2M16 16h13M16 16l9.2 9.2M16 16v13M16 16l-9.2 9.2M16 16H3M16 16L6.8 6.8" /></svg>`;
}
