// Any event: what caused it, what it caused, with times and payloads.

import { at, card, eventLine, get, h, pill, span } from "./dom.js";

const TOPICS = ["", "drift", "decisions", "model-registered", "deployed"];
let typing = 0;
export const chain = { draw };

async function draw(page) {
  const topic = page.params.get("topic") ?? "", text = page.params.get("q") ?? "";
  const found = await get(`/api/events?limit=60&topic=${encodeURIComponent(topic)}&q=${encodeURIComponent(text)}`);
  const to = (more) => `${location.pathname}?${new URLSearchParams({ topic, q: text, ...more })}`;
  let connected = null, missing = "";
  const wanted = page.rest || found.find((each) => each.topic === "deployed")?.id || found[0]?.id;
  if (wanted) try { connected = await get(`/api/events/${encodeURIComponent(wanted)}`); } catch (error) { missing = error.message; }
  return [
    h("h1", null, "Chain: what led to what"),
    h("div", { cls: "split" },
      h("section", { cls: "card side" },
        h("div", { cls: "row" }, h("label", { cls: "small", for: "topic" }, "topic"), h("select", { id: "topic", onchange: (event) => page.go(to({ topic: event.target.value })) }, TOPICS.map((each) => h("option", { value: each, selected: each === topic }, each || "all")))),
        h("p", null, h("label", { cls: "small", for: "search" }, "search"), " ", h("input", { id: "search", type: "search", value: text, placeholder: "device, version, id", oninput: (event) => { clearTimeout(typing); const value = event.target.value; typing = setTimeout(() => page.go(to({ q: value }), { replace: true }), 300); } })),
        found.length ? h("ul", { cls: "list" }, found.map((each) => h("li", { "data-key": each.id }, h("a", { cls: "item", href: `/chain/${encodeURIComponent(each.id)}?${new URLSearchParams({ topic, q: text })}`, "aria-current": connected?.event.id === each.id ? "true" : null },
          h("span", { cls: "row" }, h("span", { cls: `topic ${each.topic}` }, each.topic), h("span", { cls: "push small" }, at(each.written))), h("span", { cls: "small" }, each.says))))) : h("p", { cls: "empty" }, "No event matches.")),
      connected ? story(connected) : h("p", { cls: "empty" }, missing || "No events yet.")),
  ];
}

function story({ event, before, after, episode }) {
  const all = [...before, event, ...after], first = all[0].written;
  const lost = all.flatMap((each) => each.causes.filter((id) => !all.some((other) => other.id === id)));
  return h("div", null,
    h("p", { cls: "soft" }, `${before.length ? `${before.length} events led to it` : "Nothing led to it: it began the chain"}; ${after.length ? `${after.length} came of it` : "nothing has come of it"}.`, lost.length ? ` ${lost.length} causes are no longer on their topics.` : ""),
    h("ol", { cls: "steps" }, all.map((each, index) => h("li", { cls: each === event ? "chosen" : null, "data-key": each.id }, h("article", { cls: "card" },
      h("div", { cls: "row" }, h("span", { cls: `topic ${each.topic}` }, each.topic), each === event && pill("this one", "accent"), each.data.severity && pill(each.data.severity), h("span", { cls: "soft small push" }, at(each.written), index ? ` · ${span(each.written - first)} after the first` : "")),
      h("p", null, each === event ? h("b", null, each.says) : h("a", { href: `/chain/${encodeURIComponent(each.id)}` }, each.says)),
      h("p", { cls: "soft small" }, h("span", { cls: "mono" }, each.id.slice(0, 12)), ` from ${each.source}, ${each.topic}/${each.partition}/${each.offset}`, each.causes.length ? [" · caused by ", each.causes.slice(0, 4).map((id, place) => [place ? ", " : "", h("a", { cls: "mono", href: `/chain/${encodeURIComponent(id)}` }, id.slice(0, 12))])] : ""),
      h("details", { open: each === event }, h("summary", null, "payload"), h("pre", { cls: "payload", tabindex: "0" }, JSON.stringify(each.data, null, 2))))))),
    episode.length > 0 && card("Seen at the same time, the same change in other features", episode.slice(0, 20).map(eventLine)));
}
