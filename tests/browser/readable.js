// What somebody can't read or name: text with less contrast than WCAG's AA asks for, and controls without a name.
const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
const opaque = (colour) => colour.startsWith('rgb(');
const luminance = (colour) => {
  const [red, green, blue] = channels(colour)
    .slice(0, 3)
    .map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = (element) => {
  while (!opaque(getComputedStyle(element).backgroundColor)) element = element.parentElement;
  return getComputedStyle(element).backgroundColor;
};
const found = [];
let looked = 0;
for (const element of document.querySelectorAll('body *')) {
  const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const style = getComputedStyle(element);
  if (!says || element.disabled || style.visibility === 'hidden' || !element.getClientRects().length) continue;
  looked += 1;
  const [bright, dark] = [luminance(style.color), luminance(ground(element))].sort((a, b) => b - a);
  const contrast = (bright + 0.05) / (dark + 0.05);
  const large = parseFloat(style.fontSize) >= 24;
  if (contrast < (large ? 3 : 4.5)) found.push(`${contrast.toFixed(1)}: ${element.outerHTML.slice(0, 100)}`);
}
for (const control of document.querySelectorAll('a, button, input, select')) {
  if (!(control.innerText || control.ariaLabel || control.labels?.length)) found.push(`no name: ${control.outerHTML}`);
}
return looked > 10 ? found : [`only ${looked} texts`];
