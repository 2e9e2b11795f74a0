// A stream of changes is the same however it is cut on its way, and an id counts only once its event is complete.
const script = document.querySelector('script[src$="/app.js"]').src;
return import(script.replace('app.js', 'stream.js')).then(({ Parser }) => {
  const text = 'retry: 1500\nid: a\n\nid: b\nevent: change\ndata: {"id":\ndata: "ä"}\n\n: keep-alive\r\n\r\nid:c\r\ndata:x\r\n\r\nid: d\ndata: lost';
  const expected = JSON.stringify([{ type: 'change', data: '{"id":\n"ä"}' }, { type: 'message', data: 'x' }]);
  const wrong = [];
  for (let first = 0; first <= text.length; first += 1) {
    for (const second of [first, first + 1, text.length]) {
      const parser = new Parser();
      const events = [text.slice(0, first), text.slice(first, second), text.slice(second)].flatMap((part) => parser.push(part));
      const found = JSON.stringify(events);
      if (found !== expected || parser.id !== 'c' || parser.retryMs !== 1500) wrong.push([first, second, found, parser.id]);
    }
  }
  const cut = new Parser();
  cut.push('id: a\n\nid: b\nevent: change\ndata: {}\n');
  if (cut.id !== 'a') wrong.push(['an id before its event', cut.id]);
  return wrong;
});
