#include "serve/page.h"

namespace duet {

// ?ask=TEXT asks at once: for links, and for the page's test.
const char* const kPage = R"page(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Duet</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; color: #222; background: #fff }
#talk { min-height: 8rem }
.user, .assistant { white-space: pre-wrap; padding: .4rem .7rem; border-radius: .5rem; margin: .4rem 0 }
.user { background: #e8eefc; margin-left: 20% }
.assistant { background: #f2f2f0; margin-right: 10% }
.failed { color: #a00 }
form { display: flex; gap: .5rem }
textarea { flex: 1; font: inherit; padding: .4rem }
button, input, select { font: inherit }
svg { width: 100%; background: #fafafa; border: 1px solid #ddd; margin: .2rem 0 }
.note { color: #666; font-size: 13px }
</style></head><body>
<h1>Duet</h1>
<div class="note">model <select id="model"></select>
tokens <input id="most" type="number" value="200" min="1" style="width: 5rem">
temperature <input id="heat" type="number" value="0.7" min="0" step="0.1" style="width: 4rem">
key <input id="key" type="password" placeholder="if the server asks for one" style="width: 12rem"></div>
<div id="talk"></div>
<form id="form"><textarea id="ask" rows="2" placeholder="Say something"></textarea>
<button id="send">Send</button><button id="stop" type="button" disabled>Stop</button></form>
<div class="note" id="rate">&nbsp;</div>
<h2>Last steps</h2>
<div class="note">upper bar: compute lane, lower bar: comm lane; colours are kinds of stages</div>
<div id="steps"></div>
<script>
const $ = id => document.getElementById(id);
const talk = [];
let running = null;
function headers() {
  const h = {'Content-Type': 'application/json'};
  if ($('key').value) h.Authorization = 'Bearer ' + $('key').value;
  return h;
}
async function models() {
  try {
    const list = await (await fetch('v1/models', {headers: headers()})).json();
    $('model').replaceChildren(...(list.data || []).map(m => new Option(m.id)));
  } catch (e) { $('rate').textContent = String(e); }
}
function bubble(role, text) {
  const div = document.createElement('div');
  div.className = role;
  div.textContent = text;
  $('talk').append(div);
  return div;
}
async function send(text) {
  talk.push({role: 'user', content: text});
  bubble('user', text);
  const out = bubble('assistant', '');
  running = new AbortController();
  $('send').disabled = true;
  $('stop').disabled = false;
  let answer = '', tokens = 0, first = 0;
  const began = performance.now();
  try {
    const reply = await fetch('v1/chat/completions', {method: 'POST', headers: headers(), signal: running.signal,
      body: JSON.stringify({model: $('model').value || undefined, messages: talk, max_tokens: +$('most').value,
        temperature: +$('heat').value, stream: true,
        stream_options: {include_usage: true, continuous_usage_stats: true}})});
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    while (true) {
      const {done, value} = await reader.read();
      if (done) break;
      rest += value;
      const events = rest.split('\n\n');
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith('data: ') || event === 'data: [DONE]') continue;
        const json = JSON.parse(event.slice(6));
        if (json.error) throw new Error(json.error.message);
        if (json.usage) tokens = json.usage.completion_tokens;
        const delta = json.choices.length ? json.choices[0].delta : {};
        if (tokens && !first) first = performance.now();
        answer += (delta.reasoning_content || '') + (delta.content || '');
      }
      out.textContent = answer;
      const seconds = (performance.now() - first) / 1000;
      if (tokens > 1 && seconds > 0) $('rate').textContent = `${tokens} tokens, ` +
        `${((tokens - 1) / seconds).toFixed(1)} tokens/s, first after ${(first - began).toFixed(0)} ms`;
    }
  } catch (e) {
    if (e.name !== 'AbortError') { out.classList.add('failed'); out.textContent = answer + ' [' + e.message + ']'; }
  }
  talk.push({role: 'assistant', content: answer});
  running = null;
  $('send').disabled = false;
  $('stop').disabled = true;
  document.body.dataset.answered = 'yes';
}
function colour(kind) {
  let hash = 0;
  for (const c of kind) hash = (hash * 31 + c.charCodeAt(0)) % 360;
  return `hsl(${hash}, 60%, 60%)`;
}
function draw(step) {
  const ns = 'http://www.w3.org/2000/svg';
  const all = step.lanes.compute.concat(step.lanes.comm);
  const end = Math.max(1, ...all.map(s => s[2]));
  const svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', '0 0 1000 44');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.style.height = '44px';
  [step.lanes.compute, step.lanes.comm].forEach((lane, row) => lane.forEach(([name, from, to]) => {
    const bar = document.createElementNS(ns, 'rect');
    bar.setAttribute('x', from / end * 1000);
    bar.setAttribute('width', Math.max((to - from) / end * 1000, .3));
    bar.setAttribute('y', 2 + row * 21);
    bar.setAttribute('height', 19);
    bar.setAttribute('fill', colour(name.split(' ')[1] || name));
    const title = document.createElementNS(ns, 'title');
    title.textContent = `${name}: ${to - from} µs`;
    bar.append(title);
    svg.append(bar);
  }));
  const note = document.createElement('div');
  note.className = 'note';
  note.textContent = `step ${step.step}: ${step.tokens} tokens (${step.prompt_tokens} of prompts), ` +
    `${step.step_ms.toFixed(2)} ms, communication ${step.comm_ms.toFixed(2)} ms, exposed ` +
    `${step.exposed_ms.toFixed(2)} ms, ${step.decision}`;
  return [note, svg];
}
let last = -1;
async function steps() {
  try {
    const list = (await (await fetch('debug/steps')).json()).steps.slice(-4).reverse();
    if (list.length && list[0].step !== last) {
      last = list[0].step;
      $('steps').replaceChildren(...list.flatMap(draw));
    }
  } catch (e) { /* the server is away; the next look may find it */ }
}
$('form').onsubmit = e => {
  e.preventDefault();
  const text = $('ask').value.trim();
  if (!text || running) return;
  $('ask').value = '';
  send(text);
};
$('ask').onkeydown = e => { if (e.key === 'Enter' && !e.shiftKey) { e.preventDefault(); $('form').requestSubmit(); } };
$('stop').onclick = () => running && running.abort();
$('key').onchange = models;
setInterval(steps, 1000);
models().then(() => {
  const ask = new URLSearchParams(location.search).get('ask');
  if (ask) send(ask).then(steps);
});
</script></body></html>
)page";

}  // namespace duet
