// Elements, numbers and times. Text from outside only ever becomes a text node or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit"];

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (HANDLERS.includes(name)) element[name] = value;
    else element.setAttribute(name === "cls" ? "class" : name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Makes `old` like `fresh` with as few changes as possible, so that focus, scrolling and open details stay.
export function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || key(old) !== key(fresh)) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) if (old[name] !== fresh[name]) old[name] = fresh[name];
  if (old.hasAttribute("data-keep")) return;
  if (old.nodeName === "INPUT" || old.nodeName === "SELECT") {
    if (old !== document.activeElement && old.value !== fresh.value) old.value = fresh.value;
    if (old.nodeName === "INPUT") return;
  }
  const next = [...fresh.childNodes];
  next.forEach((child, index) => {
    const wanted = key(child);
    let here = old.childNodes[index];
    if (wanted && key(here) !== wanted) {
      const kept = [...old.childNodes].find((each) => key(each) === wanted);
      if (kept) { old.insertBefore(kept, here ?? null); here = kept; } else { old.insertBefore(child, here ?? null); return; }
    }
    if (here) morph(here, child); else old.append(child);
  });
  while (old.childNodes.length > next.length) old.lastChild.remove();
}
const key = (node) => node?.getAttribute?.("data-key") ?? "";

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "unknown" : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
export const rate = (value) => (value === null || value === undefined ? "–" : `${number(value, value < 10 ? 1 : 0)}/s`);
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
export const ago = (ts) => `${span(Math.max(0, Date.now() / 1000 - ts))} ago`;
export function clock(ts) {
  const when = new Date(ts * 1000), today = new Date().toDateString() === when.toDateString();
  const time = when.toLocaleTimeString("en-GB");
  return today ? time : `${when.toLocaleDateString("en-GB", { day: "2-digit", month: "short" })} ${time}`;
}
export const at = (ts) => h("time", { datetime: new Date(ts * 1000).toISOString(), title: new Date(ts * 1000).toLocaleString("en-GB"), cls: "soft nowrap" }, clock(ts));
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const pill = (text, kind) => h("span", { cls: `pill ${kind ?? text}` }, text);
export const card = (title, ...children) => h("section", { cls: "card" }, title && h("h2", null, title), children);
export const link = (path, ...children) => h("a", { href: path }, children);
export const eventLine = (event) =>
  h("a", { cls: "event", href: `/chain/${encodeURIComponent(event.id)}`, "data-key": event.id },
    at(event.written), h("span", { cls: `topic ${event.topic}` }, event.topic), h("span", null, event.says));

export async function get(path) {
  const reply = await fetch(path, { headers: { Accept: "application/json" } });
  if (reply.status === 401) { location.assign("/login"); return new Promise(() => {}); }
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.error ?? `${reply.status}`);
  return body;
}
