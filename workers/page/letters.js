// Records that could not be used: by class, and the last ones, as text and as bytes, never as markup.

import { at, card, get, h, number, pill, s } from "./dom.js";

const TOLD = {
  encoding: "not UTF-8", syntax: "not JSON", schema: "a field is missing or of the wrong kind", "not-finite": "NaN or infinite",
  "out-of-range": "no sensor measures that", "out-of-order": "older than what came before", oversize: "too many readings or bytes",
  "device-mismatch": "the key is not the device", "schema-unsupported": "a newer version of the event",
};
const sent = new Map();
export const letters = { draw };

async function draw(page) {
  const topic = page.params.get("topic") ?? "", reject = page.params.get("class") ?? "";
  const found = await get(`/api/dead-letters?limit=50&topic=${encodeURIComponent(topic)}&class=${encodeURIComponent(reject)}`);
  const most = Math.max(1, ...found.counts.map((each) => each.count));
  const to = (more) => `/letters?${new URLSearchParams({ topic, class: reject, ...more })}`;
  return [
    h("h1", null, "Dead letters"),
    card("By class", found.counts.length ? h("div", { cls: "scroll" }, h("table", null, h("thead", null, h("tr", null, ["class", "meaning", "topic"].map((each) => h("th", { scope: "col" }, each)), h("th", { scope: "col", cls: "num" }, "records"), h("th", { scope: "col" }, ""))),
      h("tbody", null, found.counts.map((each) => h("tr", { cls: each.class === reject && each.topic === topic ? "chosen" : null }, h("td", null, h("a", { href: to({ class: each.class, topic: each.topic }) }, each.class)), h("td", { cls: "soft" }, TOLD[each.class] ?? ""), h("td", null, each.topic), h("td", { cls: "num" }, number(each.count)),
        h("td", null, h("span", { cls: "bar", "aria-hidden": "true" }, s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" }, s("rect", { cls: "bad", width: 100 * each.count / most, height: 10 }))))))))) :
      h("p", { cls: "empty" }, "None: every record could be used.")),
    (topic || reject) && h("p", null, `Only ${[reject, topic].filter(Boolean).join(" on ")}. `, h("a", { href: "/letters" }, "Show all")),
    ...found.letters.map((each) => letter(each, page)),
  ];
}

function letter(found, page) {
  const value = found.value, cut = value && found.bytes > value.hex.length / 3 + 1;
  return h("section", { cls: "card", "data-key": found.name },
    h("div", { cls: "row" }, pill(found.class, "bad"), h("b", null, found.source ? `${found.source}/${found.source_partition}/${found.source_offset}` : "unknown source"), found.replay_of && pill("came back", "warn"),
      h("span", { cls: "soft small push" }, at(found.written), ` ${found.name}`)),
    h("p", null, found.reason),
    h("dl", { cls: "kv small" }, h("dt", null, "key"), h("dd", { cls: "mono" }, found.key ? found.key.text : "none"), h("dt", null, "value"), h("dd", null, value ? [h("pre", { cls: "payload", tabindex: "0" }, value.text), h("span", { cls: "soft" }, `${number(found.bytes)} bytes${cut ? ", the beginning is shown" : ""}`)] : "none")),
    value && h("details", null, h("summary", null, "bytes in hex"), h("pre", { cls: "payload", tabindex: "0" }, value.hex)),
    page.topology.actions ? h("p", null, h("button", { type: "button", onclick: () => replay(found.name, page) }, "Send again"), " ", h("span", { role: "status" }, sent.get(found.name) ?? "")) :
      h("p", { cls: "soft small" }, "Send it again: ", h("code", null, `driftloop dlq replay ${found.name} --yes`)));
}

async function replay(name, page) {
  const reply = await fetch("/api/dead-letters/replay", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ names: [name], dry: false }) });
  const said = await reply.json();
  sent.set(name, said.error ?? (said.sent ? "sent" : `not sent: ${Object.keys(said.passed_over)[0] ?? "no longer there"}`));
  page.refresh();
}
