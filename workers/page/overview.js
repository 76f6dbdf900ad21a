// The loop as a picture, what is going on in words, and the few figures that everything else hangs on.

import { ago, at, card, eventLine, h, number, pill, rate, s, score, span } from "./dom.js";

const MARKS = { good: "✓", busy: "…", bad: "!", note: "·" };

export const overview = { draw };

function draw({ overview: now, topology }) {
  return [
    h("h1", null, "What is going on"),
    h("section", { cls: "card", "aria-label": "Now" }, h("ul", { cls: "now" }, now.now.map((each) =>
      h("li", { cls: each.level }, h("span", { cls: "mark", "aria-hidden": "true" }, MARKS[each.level]), h("a", { href: each.link }, each.text))))),
    h("section", { cls: "card" },
      h("div", { cls: "row" }, h("h2", null, "The loop"),
        h("span", { cls: "soft small push" }, now.readings_rate === null ? "" : `${number(now.readings_rate)} readings/s taken in`)),
      h("div", { cls: "scroll", tabindex: "0", role: "group", "aria-label": "Picture of the loop" }, picture(topology, now))),
    h("div", { cls: "grid" }, champion(now.champion, topology), lastDrift(now.last_drift), decided(now), processes(now)),
    card("Last events", now.events.length ? h("div", null, now.events.map(eventLine)) :
      h("p", { cls: "empty" }, now.events_read ? "Nothing has happened yet. Readings on the activity topic start the loop." : "Reading the topics …")),
  ];
}

// Processes stand in the order in which the topology first names them; what goes on to the next one is drawn straight,
// what skips one above, what goes back below.
function picture(topology, now) {
  const order = [];
  for (const topic of topology.topics) for (const name of [...topic.written_by, ...topic.read_by]) if (name !== "monitor" && name !== "operators" && !order.includes(name)) order.push(name);
  const width = 1180, boxes = 118, step = (width - 40 - boxes) / (order.length - 1), y = 112;
  const left = (name) => 20 + order.indexOf(name) * step;
  const edges = [], seen = new Set();
  let above = 0, below = 0;
  for (const topic of topology.topics) {
    for (const writer of topic.written_by) for (const reader of topic.read_by) {
      const from = order.indexOf(writer), to = order.indexOf(reader);
      if (from < 0 || to < 0 || from === to) continue;
      const flows = (now.rates[topic.name] ?? 0) > 0.05, count = now.counts[topic.short];
      const said = topic.events && count !== undefined ? `${number(count)} ${count === 1 ? "event" : "events"}` : rate(now.rates[topic.name]);
      if (to === from + 1) {
        const start = left(writer) + boxes, end = left(reader) - 9, other = seen.has(`${from}-${to}`) ? 34 : 0;
        seen.add(`${from}-${to}`);
        edges.push(s("path", { cls: `edge ${flows ? "flows" : ""}`, d: `M${start} ${y + 30 + other} H${end}`, "marker-end": "url(#head)" }),
          s("text", { x: (start + end) / 2, y: y + 22 + other, "text-anchor": "middle" }, topic.short),
          s("text", { x: (start + end) / 2, y: y + 46 + other, "text-anchor": "middle", cls: "soft" }, said), lagText(topology, now, topic, (start + end) / 2, y + 62 + other));
      } else {
        const back = to < from, depth = back ? ++below : ++above, edge = back ? y + 60 : y;
        const turn = back ? y + 92 + depth * 26 : y - 22 - depth * 20;
        const start = left(writer) + boxes / 2 + (back ? -12 * depth : 12 * depth), end = left(reader) + boxes / 2 + (back ? 10 * depth : -10 * depth);
        edges.push(s("path", { cls: `edge back ${flows ? "flows" : ""}`, d: `M${start} ${edge} V${turn} H${end} V${edge + (back ? 9 : -9)}`, "marker-end": "url(#head)" }),
          // Nearer to where it ends: the middle of a long way back is crossed by a shorter one.
          s("text", { x: back ? start + 0.75 * (end - start) : (start + end) / 2, y: turn - 5, "text-anchor": "middle", cls: "soft" }, topic.short));
      }
    }
  }
  const height = y + 108 + below * 26;
  return s("svg", { cls: "loop", viewBox: `0 ${above ? 28 : 70} ${width} ${height - (above ? 28 : 70)}`, role: "group", "aria-label": `The loop: ${order.join(" to ")}` },
    s("defs", null, s("marker", { id: "head", viewBox: "0 0 8 8", refX: 1, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" }, s("path", { cls: "head", d: "M0 0 8 4 0 8z" }))),
    edges, order.map((name) => node(name, left(name), y, boxes, now)));
}

function lagText(topology, now, topic, x, y) {
  const group = Object.keys(topology.groups).find((each) => topology.groups[each] === topic.name);
  if (!group) return null;
  const found = now.groups?.find((each) => each.group === group);
  if (!found) return s("text", { x, y, "text-anchor": "middle", cls: "soft" }, "lag unknown");
  const kind = { ok: "good-text", unknown: "soft", warn: "warn-text", rewind: "warn-text" }[found.verdict] ?? "bad-text";
  const told = found.uncommitted === found.partitions ? `none read, ${number(found.backlog)} there` : `lag ${number(found.waiting)}${found.seconds > 1 ? `, ${span(found.seconds)}` : ""}`;
  return s("text", { x, y, "text-anchor": "middle", cls: kind }, told);
}

function node(name, x, y, width, now) {
  const alike = now.processes.filter((each) => each.name === name || each.name.startsWith(`${name}-`));
  const process = alike[0];
  let kind = "", said = name === "sensors" ? "your devices" : "not asked";
  if (process) {
    kind = !process.live ? "bad" : process.ready ? "good" : "busy";
    said = process.live ? process.doing || "running" : "does not answer";
    if (name === "router") said = now.champion?.routed ? `serves version ${now.champion.routed}` : "no model yet";
  }
  if (said.length > 19) said = `${said.slice(0, 18)}…`;
  const more = alike.length > 1 ? ` ×${alike.length}` : "";
  const target = { agent: "/devices", retrain: "/models", deploy: "/models", router: "/models" }[name];
  const body = [s("rect", { cls: `node ${kind}`, x, y, width, height: 60, rx: 10 }), s("text", { cls: "name", x: x + width / 2, y: y + 26, "text-anchor": "middle" }, name + more),
    s("text", { cls: "soft", x: x + width / 2, y: y + 45, "text-anchor": "middle" }, said)];
  return target ? s("a", { href: target, "aria-label": `${name}: ${said}` }, body) : s("g", null, body);
}

function champion(found, topology) {
  if (!found) return card("Model in service", h("p", { cls: "empty" }, "None yet: the first model is trained once there are enough labelled readings."));
  return card("Model in service",
    h("p", { cls: "big" }, `version ${found.version}`),
    h("p", { cls: "soft" }, [found.winner, found.target && `as a ${found.target}`].filter(Boolean).join(", ")),
    h("div", { cls: "figures" },
      figure("age", found.age === null ? "unknown" : span(found.age)), figure("macro F1, held out", score(found.score)),
      figure("router sends to", found.routed ? `version ${found.routed}` : "unknown")),
    h("p", { cls: "small" }, h("a", { href: "/models" }, "Why this one?"), topology.mlflow && [" · ", h("a", { href: topology.mlflow, target: "_blank", rel: "noopener" }, "MLflow")]));
}

const figure = (name, value) => h("div", { cls: "figure" }, h("span", { cls: "soft small" }, name), h("b", null, value));

function lastDrift(found) {
  if (!found) return card("Last drift", h("p", { cls: "empty" }, "Nothing has drifted so far."));
  const data = found.data;
  return card("Last drift",
    h("p", { cls: "big" }, h("a", { href: `/devices/${encodeURIComponent(data.device)}` }, data.device)),
    h("p", null, found.says.replace(`${data.device} `, "").replace(/ \([a-z]+\)$/, ""), " ", pill(data.severity)),
    h("p", { cls: "soft small" }, `seen ${ago(found.written)}`, found.features > 1 ? `, in ${found.features} features at once` : ""),
    found.led_to.length ? h("div", null, h("h3", null, "What came of it"), found.led_to.slice(-3).map((each) =>
      h("p", { cls: "small" }, h("span", { cls: `topic ${each.topic}` }, each.topic), " ", h("a", { href: `/chain/${encodeURIComponent(each.id)}` }, each.says)))) :
      h("p", { cls: "small" }, "Nothing has answered to it yet. ", h("a", { href: `/chain/${encodeURIComponent(found.id)}` }, "Its chain")));
}

function decided(now) {
  const last = now.last_decision;
  return card("Last decision, and what could not be used",
    last ? h("p", null, h("a", { href: `/chain/${encodeURIComponent(last.id)}` }, last.says), " ", h("span", { cls: "soft small" }, ago(last.written))) :
      h("p", { cls: "soft" }, "No decision yet. Whatever is not done is written down here with its reason."),
    h("p", null, h("a", { href: "/letters" }, `${number(now.letters)} dead letters`), h("span", { cls: "soft" }, now.letters ? ": records that could not be read" : ": every record could be read")));
}

function processes(now) {
  const servers = Object.entries(now.servers).filter(([name]) => name !== "router" || !now.processes.some((each) => each.name === "router"));
  return card("Processes", h("div", { cls: "scroll" }, h("table", null, h("tbody", null,
    now.processes.map((each) => h("tr", { "data-key": each.name }, h("td", null, each.name), h("td", null, each.live ? pill(each.ready ? "well" : "waiting", each.ready ? "good" : "busy") : pill("silent", "bad")), h("td", { cls: "soft small" }, each.doing))),
    servers.map(([name, trouble]) => h("tr", { "data-key": `server-${name}` }, h("td", null, name), h("td", null, trouble === "not looked yet" ? pill("asked", "busy") : trouble ? pill("trouble", "bad") : pill("well", "good")), h("td", { cls: "soft small" }, trouble ?? "")))))),
    !now.processes.length && h("p", { cls: "soft small" }, "None is known here; DRIFTLOOP_PROCESSES names those of another machine."));
}
