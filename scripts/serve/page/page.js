// The page of `agp serve`. What comes from outside becomes text nodes, never markup.

const NAMES = { full: "Full depth", early: "Early exits", lossless: "Lossless" };
const ROUTES = {
  accept_local: "left early as it was",
  revive_local: "left early and was mended",
  escalate: "was sent to the peer",
};
const LEVELS = 6; // of colour, the lowest not counted
const MARK = /^<[^<>\s]+>$/; // <turn|> and its like
const PAUSE = 200; // ms between two drawings of what is summed up

const $ = (id) => document.getElementById(id);
const server = { id: null, blocks: null, exits: [], modes: [], risks: [], peer: false };
let messages = []; // a new conversation is a new list: what still runs writes to its own
let going = null; // an AbortController while a reply comes
let following = true; // the end of the page, until the reader scrolls up

function make(name, about = {}, ...children) {
  const svg = name === "svg" || name === "rect";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(about)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const sum = (values) => values.reduce((all, value) => all + value, 0);
const mean = (values) => (values.length ? sum(values) / values.length : null);
const known = (tokens, field) => tokens.map((token) => token[field]).filter((value) => value != null);
const share = (part, whole) => `${Math.round((100 * part) / whole)} %`;
const short = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
const many = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const bytes = (count) => (count < 1000 ? many(count, "byte") : `${short(count / 1000)} kB`);
const quoted = (text) => `“${text.replaceAll("\n", "↵")}”`;
const joined = (parts, by = " · ") => parts.filter(Boolean).join(by);
const named = (mode) => NAMES[mode] ?? mode;
const isLast = (block) => block === server.blocks - 1;
const tapOf = (i) => server.exits[i] ?? i;
const blockSaid = (block) => `block ${block}${isLast(block) ? ", the last" : ""}`;

/** How far along the exits a block lies, 0 to 6; where nothing is known of them, all is of full depth. */
function level(block) {
  const before = server.exits.filter((exit) => exit < block).length;
  const most = server.exits.length - 1;
  return most < 1 ? LEVELS : Math.min(LEVELS, Math.round((LEVELS * before) / most));
}

// What was decided of a token, in words

function described(token, at) {
  const { text, block, route, vitality, ms, peer, mixing, concepts } = token;
  const gone = route === "escalate" || (block != null && !isLast(block));
  return joined([
    `token ${at + 1}${text ? ` ${quoted(text)}` : ", no text of its own"}`,
    block != null && `after ${blockSaid(block)}`,
    gone && (ROUTES[route] ?? route),
    vitality != null && `vitality ${vitality.toFixed(2)}`,
    ms != null && `${short(ms)} ms`,
    peer && peerSaid([peer]),
    mixing?.length > 1 && `mixed of ${mixing.map((weight, i) => `block ${tapOf(i)} ${share(weight, 1)}`).join(", ")}`,
    concepts?.length && `concepts: ${concepts.join(", ")}`,
  ]);
}

function peerSaid(peers) {
  const [ms, sent, received] = ["ms", "sent", "received"].map((field) => known(peers, field));
  const parts = [
    ms.length && `${short(sum(ms))} ms till the peer answered`,
    ms.length > 1 && `${short(mean(ms))} ms each`,
    sent.length && `${bytes(sum(sent))} sent`,
    received.length && `${bytes(sum(received))} received`,
  ];
  return joined(parts, ", ");
}

// One reply: its tokens, and what is summed up of them

class Reply {
  constructor(mode, risk) {
    Object.assign(this, { mode, tokens: [], text: "", current: 0, chosen: null, shown: null });
    const list = { class: "tokens", role: "listbox", "aria-orientation": "horizontal" };
    this.list = make("div", { ...list, "aria-label": `Tokens, ${named(mode)}; arrow keys walk` });
    this.detail = make("p", { class: "detail quiet" });
    this.facts = make("div", { class: "facts" });
    this.more = make("details", { open: "", hidden: "" }, make("summary", {}, "Depths, mixing, concepts, peer"), this.facts);
    this.speed = make("p", { class: "speed" });
    this.alarm = make("p", { class: "alarm", hidden: "" });
    this.figure = make("figure");
    this.whole = make("p", { class: "unseen" }); // to be read in one go; the list is for walking
    const title = make("h3", {}, mode === "early" ? `${named(mode)}, risk ${risk}` : named(mode));
    const parts = [title, this.alarm, this.list, this.whole, this.detail, this.speed, this.figure, this.more];
    this.node = make("article", { class: "reply going", "aria-label": `Reply, ${named(mode)}` }, ...parts);
    const at = (event) => (event.target === this.list ? null : Number(event.target.dataset.at));
    this.list.addEventListener("focusin", (event) => this.choose(at(event)));
    this.list.addEventListener("mouseover", (event) => this.show(at(event) ?? this.chosen));
    this.list.addEventListener("mouseleave", () => this.show(this.chosen));
    this.list.addEventListener("click", (event) => at(event) != null && event.target.focus());
    this.list.addEventListener("keydown", (event) => this.walk(event));
  }

  add(content, tokens) {
    this.text += content;
    let said = "";
    for (const token of tokens) {
      const text = token.text ?? "";
      const mark = MARK.test(text) && !content.includes(text); // stands in no content
      this.append(server.blocks == null ? { ...token, block: null } : token, mark);
      if (!mark) said += text;
    }
    // what no token says for itself, such as a half of a stop text that was held back
    if (content !== said && content.startsWith(said)) (this.last ?? this.list).append(content.slice(said.length));
    this.due ??= setTimeout(() => this.draw(), PAUSE);
  }

  append(token, mark) {
    const at = this.tokens.push(token) - 1;
    const [text, words] = [token.text ?? "", described(token, at)];
    const about = { role: "option", "aria-selected": "false", "aria-label": words, title: words, "data-at": at };
    const node = make("span", { ...about, tabindex: at === this.current ? 0 : -1 }, text);
    node.className = token.block == null ? "token" : `token d${level(token.block)}`;
    node.classList.toggle("mark", mark);
    const signs = [token.route === "escalate" && "↗", text.startsWith("\n") && "↵", text === "" && "·"];
    if (signs.some(Boolean)) node.dataset.signs = joined(signs, "");
    this.list.append(node);
    if (!mark) this.last = node;
  }

  choose(at) {
    if (at == null) return;
    for (const [which, is] of [[this.current, false], [at, true]]) {
      this.list.children[which].tabIndex = is ? 0 : -1;
      this.list.children[which].setAttribute("aria-selected", is);
    }
    this.current = this.chosen = at;
    this.show(at);
  }

  show(at) {
    for (const node of this.node.querySelectorAll(".chosen")) node.classList.remove("chosen");
    if (at != null) for (const node of this.node.querySelectorAll(`[data-at="${at}"]`)) node.classList.add("chosen");
    this.shown = at;
    const hint = this.tokens.length ? "Point at a token, or walk with the arrow keys: what was decided of it." : "";
    this.detail.replaceChildren(...(at == null ? [hint] : [described(this.tokens[at], at), mixed(this.tokens[at])]));
    this.detail.classList.toggle("quiet", at == null);
  }

  walk(event) {
    const nodes = [...this.list.children];
    if (event.ctrlKey || event.altKey || event.metaKey || !nodes.length) return;
    const steps = { ArrowLeft: this.current - 1, ArrowRight: this.current + 1, Home: 0, End: nodes.length - 1 };
    const lines = { ArrowUp: -1, ArrowDown: 1 };
    const to = lines[event.key] ? this.inNextLine(nodes, lines[event.key]) : steps[event.key];
    if (to == null) return;
    event.preventDefault();
    nodes[Math.max(0, Math.min(to, nodes.length - 1))].focus();
  }

  /** The token above or below: of those in the next line, the one that lies nearest. */
  inNextLine(nodes, step) {
    const place = (at) => nodes[at].getClientRects()[0];
    const here = place(this.current);
    const down = (at) => step * (place(at).top - here.top);
    const ahead = [...nodes.keys()].filter((at) => down(at) > here.height / 2);
    const next = Math.min(...ahead.map(down)) + here.height / 2;
    const aside = (at) => Math.abs(place(at).left - here.left);
    return ahead.filter((at) => down(at) < next).sort((a, b) => aside(a) - aside(b))[0] ?? this.current;
  }

  draw() {
    clearTimeout(this.due);
    this.due = null;
    this.speed.textContent = this.speedSaid();
    this.alarm.textContent = this.alarmSaid();
    this.alarm.hidden = !this.alarm.textContent;
    this.figure.replaceChildren(...strip(this.tokens));
    this.show(this.shown);
    const facts = [depths, mixes, concepts, escalated].map((fact) => fact(this.tokens)).filter(Boolean);
    this.more.hidden = !facts.length;
    this.facts.replaceChildren(...facts);
    followDown();
  }

  get each() {
    return mean(known(this.tokens, "ms"));
  }

  speedSaid() {
    const blocks = known(this.tokens, "block");
    const early = blocks.filter((block) => !isLast(block)).length;
    return joined([
      this.tokens.length && many(this.tokens.length, "token"),
      blocks.length && `${share(early, blocks.length)} left early`,
      this.each && `${short(this.each)} ms a token · ${short(1000 / this.each)} tokens a second`,
      this.ended,
    ]);
  }

  alarmSaid() {
    const at = this.tokens.findIndex((token) => token.fallen);
    const why = "more tokens differed from full depth than it promises";
    return at < 0 ? "" : `⚠ Early has fallen back to lossless${at ? ` at token ${at + 1}` : ""}: ${why}.`;
  }

  end(how) {
    this.ended = how;
    this.node.classList.remove("going");
    this.whole.textContent = this.text;
    this.draw();
  }
}

function strip(tokens) {
  const found = known(tokens, "vitality");
  if (!found.length) return [];
  const [average, least] = [mean(found), Math.min(...found)].map(short);
  const words = `Vitality of ${many(found.length, "token")}: ${average} on average, ${least} at least`;
  const svg = make("svg", { class: "strip", role: "img", "aria-label": words, preserveAspectRatio: "none" });
  svg.setAttribute("viewBox", `0 0 ${tokens.length} 1`);
  svg.style.width = `${tokens.length * 12}px`;
  tokens.forEach(({ vitality, block }, at) => {
    if (vitality == null) return;
    const height = Math.max(0.03, vitality); // none at all can still be seen
    const where = { x: at + 0.15, y: 1 - height, width: 0.7, height };
    svg.append(make("rect", { ...where, "data-at": at, class: `d${block == null ? LEVELS : level(block)}` }));
  });
  const gaps = tokens.length - found.length;
  const left = gaps ? `, gaps are ${many(gaps, "token")} without` : "";
  return [svg, make("figcaption", {}, `${words}; the upper line is 1${left}`)];
}

function bars(title, rows) {
  const most = Math.max(...rows.map((row) => row.value));
  const lines = rows.map(({ block, value, said }) => {
    const bar = make("span", { class: `bar d${level(block)}` });
    bar.style.width = `${(100 * value) / most}%`; // as a property: an attribute would be refused
    return make("li", {}, make("span", {}, `block ${block}`), bar, make("span", {}, said));
  });
  return make("section", {}, make("h3", {}, title), make("ul", { class: "bars" }, ...lines));
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

function depths(tokens) {
  const blocks = known(tokens, "block");
  const counts = counted(blocks);
  const all = [...new Set([...server.exits, ...counts.keys()])].sort((a, b) => a - b);
  const row = (block, value) => ({ block, value, said: `${value}, ${share(value, blocks.length)}` });
  return blocks.length ? bars("Left after", all.map((block) => row(block, counts.get(block) ?? 0))) : null;
}

/** How much each depth counted in one token: a bar in parts. The words beside it say the same. */
function mixed({ mixing }) {
  if (!(mixing?.length > 1)) return "";
  const parts = mixing.map((weight, i) => {
    const part = make("span", { class: `bar d${level(tapOf(i))}` });
    part.style.width = `${100 * weight}%`;
    return part;
  });
  return make("span", { class: "mixed", "aria-hidden": "true" }, ...parts);
}

function mixes(tokens) {
  const all = known(tokens, "mixing");
  const most = Math.max(0, ...all.map((mixing) => mixing.length));
  if (!most) return null;
  const means = Array.from({ length: most }, (_, i) => mean(all.map((mixing) => mixing[i] ?? 0)));
  const row = (value, i) => ({ block: tapOf(i), value, said: share(value, 1) });
  return bars("Depths mixed, on average", means.map(row));
}

function concepts(tokens) {
  const counts = [...counted(known(tokens, "concepts").flat())].sort((a, b) => b[1] - a[1]).slice(0, 8);
  const lines = counts.map(([name, count]) => make("li", {}, `${name} (${count})`));
  return lines.length ? make("section", {}, make("h3", {}, "Most frequent concepts"), make("ul", {}, ...lines)) : null;
}

function escalated(tokens) {
  const gone = tokens.filter((token) => token.route === "escalate" || token.peer);
  const words = joined([many(gone.length, "token"), peerSaid(known(gone, "peer"))], ": ");
  return gone.length ? make("section", {}, make("h3", {}, "To the peer"), make("p", {}, words)) : null;
}

// Two replies to one message

function compared(full, routed, verdict) {
  const of = (token) => token?.token ?? token?.text;
  const [a, b] = [full.tokens, routed.tokens];
  const longest = a.length > b.length ? a : b;
  if (!longest.length) return;
  const at = longest.findIndex((_, i) => of(a[i]) !== of(b[i]));
  const faster = full.each && routed.each ? ` ${short(full.each / routed.each)} times the speed of full depth.` : "";
  verdict.hidden = false;
  verdict.classList.toggle("same", at < 0);
  verdict.textContent = `≡ Token for token the same.${faster}`;
  if (at < 0) return;
  for (const node of [full, routed].map((reply) => reply.list.children[at]).filter(Boolean)) {
    node.classList.add("differs");
    node.dataset.signs = `≠${node.dataset.signs ?? ""}`;
    node.setAttribute("aria-label", `first difference: ${node.getAttribute("aria-label")}`);
  }
  const said = (token) => (token ? quoted(token.text || "·") : "has ended");
  const words = `full depth ${said(a[at])}, ${named(routed.mode).toLowerCase()} ${said(b[at])}`;
  verdict.textContent = `≠ First difference at token ${at + 1}: ${words}.${faster}`;
}

// The server

async function asked(path, options = {}) {
  const token = $("token").value ? { Authorization: `Bearer ${$("token").value}` } : {};
  const headers = { "Content-Type": "application/json", ...token };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
  });
  if (response.ok) return response;
  if (response.status === 401) $("token-field").hidden = false;
  const told = await response.json().catch(() => null);
  throw new Error(told?.error?.message ?? `The server answered ${response.status} ${response.statusText}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The reply broke off: the server is gone.");
    });
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/** Fills the reply, which says what ended it; what went wrong is thrown. */
async function stream(said, reply, { most, temperature, risk, seed }, signal) {
  const body = { model: server.id, messages: said, stream: true, max_tokens: most, temperature, seed };
  body.agp = { mode: reply.mode, trace: true, ...(reply.mode === "early" ? { risk: Number(risk) } : {}) };
  const sent = { method: "POST", body: JSON.stringify(body), signal };
  let reason = null;
  try {
    for await (const chunk of events(await asked("v1/chat/completions", sent))) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0];
      if (choice) reply.add(choice.delta?.content ?? "", choice.agp ?? []);
      reason = choice?.finish_reason ?? reason;
    }
    if (!reason) throw new Error("The reply broke off: the server ended it in the middle.");
    reply.end(reason === "length" ? "cut short by a limit" : null);
  } catch (error) {
    reply.end(signal.aborted ? "stopped" : "broke off");
    if (!signal.aborted) throw error;
  }
}

async function begin() {
  const told = await (await asked("v1/models")).json();
  const model = told.data?.[0];
  if (!model) throw new Error("The server names no model.");
  const { blocks = null, taps = [], risks = [], peer = false, tokens = null, ...rest } = model.agp ?? {};
  const modes = (rest.modes ?? []).filter((mode) => mode !== "early" || risks.length); // no risk is kept, none leaves
  const exits = [...new Set(blocks == null ? taps : [...taps, blocks - 1])].sort((a, b) => a - b);
  Object.assign(server, { id: model.id, blocks, exits, modes, risks, peer });
  $("about").textContent = joined([model.id, blocks && many(blocks, "block"), peer && "with a peer"]);
  if (tokens) $("most").max = tokens;
  if (tokens && $("most").value > tokens) $("most").value = tokens;
  $("mode").replaceChildren(...modes.map((mode) => make("option", { value: mode }, named(mode))));
  $("mode").value = ["early", "lossless", "full"].find((mode) => modes.includes(mode)) ?? "";
  $("risk").replaceChildren(...risks.map((risk) => make("option", { value: risk }, `${risk}`)));
  const item = (about, words) => make("li", {}, make("span", about, words));
  const exit = (block) => item({ class: `token d${level(block)}` }, blockSaid(block));
  const away = peer ? [item({ class: "token", "data-signs": "↗" }, " sent to the peer")] : [];
  $("legend").replaceChildren(...exits.map(exit), ...away);
  $("legend-part").hidden = $("mode-field").hidden = !modes.length;
  fit();
}

// The form

function fit() {
  $("risk-field").hidden = $("risk-told").hidden = $("mode").value !== "early";
  $("beside-field").hidden = !server.modes.includes("full") || $("mode").value === "full";
}

function followDown() {
  if (following && going) window.scrollTo(0, document.documentElement.scrollHeight);
}

function wrong(error) {
  $("conversation").append(make("p", { class: "wrong", role: "alert" }, error.message));
}

async function send() {
  const [prompt, talk] = [$("prompt").value, messages];
  if (going || !prompt.trim() || !$("form").reportValidity()) return;
  const control = (going = new AbortController());
  busy(true);
  try {
    if (!server.id) await begin();
    $("prompt").value = "";
    await answered(talk, prompt, control.signal);
  } catch (error) {
    if (talk === messages) wrong(error);
    if (talk === messages && !$("prompt").value) $("prompt").value = prompt; // to mend and send again
  } finally {
    if (going === control) busy(false);
  }
}

async function answered(talk, prompt, signal) {
  const [most, temperature] = [Number($("most").value), Number($("temperature").value)];
  const settings = { most, temperature, risk: $("risk").value, seed: Math.floor(2 ** 32 * Math.random()) };
  const mode = $("mode").value || "full";
  const beside = $("beside").checked && !$("beside-field").hidden;
  const replies = (beside ? ["full", mode] : [mode]).map((each) => new Reply(each, settings.risk));
  const verdict = make("p", { class: "verdict", hidden: "" });
  for (const open of document.querySelectorAll("details[open]")) open.open = false;
  $("empty").hidden = true;
  $("conversation").append(
    make("p", { class: "said" }, make("span", { class: "unseen" }, "You: "), prompt),
    make("div", { class: "columns" }, ...replies.map((reply) => reply.node)),
    verdict,
  );
  following = true;
  followDown();
  const said = [...talk, { role: "user", content: prompt }];
  try {
    for (const reply of replies) if (!signal.aborted) await stream(said, reply, settings, signal);
  } finally {
    for (const reply of replies) if (!reply.tokens.length && !reply.text) reply.node.remove();
  }
  const last = replies.findLast((reply) => reply.text);
  if (beside && !signal.aborted) compared(...replies, verdict);
  followDown();
  if (last) talk.push(said.at(-1), { role: "assistant", content: last.text });
  const parts = [`Reply: ${last?.text ?? ""}`, last?.alarmSaid(), last?.speedSaid(), verdict.textContent];
  if (talk === messages) $("told").textContent = joined(parts);
}

function busy(is) {
  if (!is) going = null;
  $("send").disabled = is;
  $("stop").disabled = !is;
  if (is) $("told").textContent = "";
  if ([$("stop"), $("send"), document.body].includes(document.activeElement)) $("prompt").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => going?.abort());
$("fresh").addEventListener("click", () => {
  messages = [];
  going?.abort();
  busy(false);
  $("conversation").replaceChildren();
  $("empty").hidden = false;
  $("told").textContent = "New conversation";
  $("prompt").focus();
});
$("mode").addEventListener("change", fit);
$("token").addEventListener("change", () => server.id || begin().catch(wrong));
window.addEventListener("scroll", () => {
  following = window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 160;
}, { passive: true });
// so that nothing that has focus lies hidden behind the form
const root = document.documentElement;
new ResizeObserver(() => root.style.setProperty("--form", `${$("form").offsetHeight}px`)).observe($("form"));
begin().catch(wrong);
