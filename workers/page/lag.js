// How far each consumer group is behind: a card and a plot for each group, a table of its partitions.

import { axes, colour, forget, loadPlots, plot } from "./charts.js";
import { card, get, h, number, pill, rate, span } from "./dom.js";

const SPANS = [["15 min", 900], ["1 h", 3600], ["6 h", 21600], ["24 h", 86400], ["7 days", 604800]];
const COLUMNS = [
  ["topic", "topic", (p) => p.topic], ["partition", "partition", (p) => p.partition, true],
  ["committed", "committed", (p) => (p.committed === null && p.end !== null ? "none yet" : number(p.committed)), true, (p) => p.committed ?? -1],
  ["end", "end", (p) => number(p.end), true, (p) => p.end ?? -1],
  ["lag", "lag", (p) => (p.committed !== null || p.end === null ? number(p.lag) : p.backlog === null ? "–" : `(${number(p.backlog)} there)`), true, (p) => p.lag ?? p.backlog ?? -1],
  ["seconds", "behind", (p) => (p.committed === null ? "–" : `${span(p.seconds)}${TRENDS[p.trend] ?? ""}`), true, (p) => p.seconds ?? -1],
  ["rate_in", "in", (p) => rate(p.rate_in), true], ["rate_out", "out", (p) => rate(p.rate_out), true],
  ["catch_up_s", "caught up in", (p) => (p.lag === null ? "–" : p.waiting === 0 ? "" : p.catch_up_s === null ? "not at this rate" : span(p.catch_up_s)), true, (p) => p.catch_up_s ?? Infinity],
  ["owner", "read by", (p) => p.owner ?? "nobody"], ["verdict", "verdict", null, false, (p) => p.verdict],
];
const TRENDS = { growing: " ↑", falling: " ↓" };
let history = null, asked = "", askedAt = 0;

export const lag = { draw, drawn, leave };

async function draw(page) {
  const found = await get("/api/lag"), seconds = Number(page.params.get("seconds")) || 900;
  if (!found.partitions) {
    return [h("h1", null, "Lag"), card(null, h("p", { cls: "big" }, "unknown"), h("p", null, `Kafka cannot be asked: ${found.trouble}.`),
      h("p", { cls: "soft" }, "Nothing is shown rather than zeros; the figures come back with the broker."))];
  }
  const ours = Object.keys(page.topology.groups);
  const groups = found.groups.toSorted((a, b) => ours.includes(b.group) - ours.includes(a.group) || a.group.localeCompare(b.group));
  const chosen = groups.find((each) => each.group === page.params.get("group")) ?? groups[0];
  if (!chosen) return [h("h1", null, "Lag"), card(null, h("p", { cls: "empty" }, "There are no consumer groups."))];
  const names = [`lag|${chosen.group}`, `seconds|${chosen.group}`, `out|${chosen.group}`, ...chosen.topics.map((topic) => `in|${topic}`)];
  const path = `/api/history?seconds=${seconds}&${names.map((name) => `name=${encodeURIComponent(name)}`).join("&")}`;
  if (path !== asked || Date.now() - askedAt > 8000) {
    [history] = await Promise.all([get(path), loadPlots()]);
    [asked, askedAt] = [path, Date.now()];
  }
  page.group = chosen;
  const to = (more) => `/lag?${new URLSearchParams({ group: chosen.group, seconds, ...sorting(page), ...more })}`;
  return [
    h("h1", null, "Lag"),
    h("div", { cls: "grid" }, groups.slice(0, 60).map((each) => h("section", { cls: "card", "data-key": each.group },
      h("div", { cls: "row" }, h("h2", null, h("a", { href: `/lag?group=${encodeURIComponent(each.group)}`, "aria-current": each === chosen ? "true" : null }, each.group)), h("span", { cls: "push" }, pill(each.verdict))),
      h("div", { cls: "figures" },
        figure("lag", each.uncommitted === each.partitions ? "none yet" : number(each.lag), each.uncommitted && each.backlog ? `${number(each.backlog)} more where it has not begun` : "records"),
        figure("behind", each.uncommitted === each.partitions ? "–" : span(each.seconds), !each.waiting || (each.stuck && each.verdict === "ok") ? "" : each.stuck ? "not catching up" : `caught up in ${span(each.catch_up_s)}`),
        figure("members", number(each.members), each.members === 0 ? "nobody reads" : "")),
      h("p", { cls: "soft small" }, each.why, each.expired ? `; ${number(each.expired)} records expired unread` : "")))),
    groups.length > 60 && h("p", { cls: "soft" }, `${groups.length - 60} more groups are in /api/lag.`),
    h("section", { cls: "card" },
      h("div", { cls: "row" }, h("h2", null, chosen.group), h("span", { cls: "push row", role: "group", "aria-label": "Time shown" }, SPANS.map(([name, value]) =>
        h("button", { type: "button", "aria-pressed": String(value === seconds), onclick: () => page.go(to({ seconds: value }), { replace: true }) }, name)))),
      h("div", { cls: "plot", id: "lag-plot", "data-keep": true, "data-key": `lag-${chosen.group}` }),
      h("div", { cls: "plot", id: "rate-plot", "data-keep": true, "data-key": `rate-${chosen.group}` })),
    h("section", { cls: "card" }, h("h2", null, `Partitions of ${chosen.group}`), table(page, found.partitions.filter((each) => each.group === chosen.group), to)),
  ];
}

// A line needs two points: of a group that has just been seen for the first time there is one.
const few = (u, series) => u.data[series].filter((each) => each !== null).length < 3;

const figure = (name, value, note) => h("div", { cls: "figure" }, h("span", { cls: "soft small" }, name), h("b", null, value), h("span", { cls: "soft small" }, note));

function sorting(page) {
  const by = page.params.get("by");
  return by ? { by, down: page.params.get("down") ?? "" } : {};
}

function table(page, partitions, to) {
  const { by = "partition", down = "" } = sorting(page);
  const [, , , , value = (p) => p[by]] = COLUMNS.find(([name]) => name === by) ?? [];
  const sorted = partitions.toSorted((a, b) => { const [x, y] = [value(a), value(b)]; return (x > y) - (x < y) || a.topic.localeCompare(b.topic) || a.partition - b.partition; });
  if (down) sorted.reverse();
  return h("div", { cls: "scroll", tabindex: "0", role: "group", "aria-label": "Partitions" }, h("table", null,
    h("thead", null, h("tr", null, COLUMNS.map(([name, title, , right]) =>
      h("th", { cls: right ? "num" : null, scope: "col", "aria-sort": name === by ? (down ? "descending" : "ascending") : null },
        h("button", { type: "button", onclick: () => page.go(to({ by: name, down: name === by && !down ? "1" : "" }), { replace: true }) }, title))))),
    h("tbody", null, sorted.map((p) => h("tr", { "data-key": `${p.topic}/${p.partition}` }, COLUMNS.map(([name, , text, right]) =>
      name === "verdict" ? h("td", null, pill(p.verdict), " ", h("span", { cls: "soft small" }, p.why)) : h("td", { cls: right ? "num nowrap" : null }, String(text(p)))))))));
}

function joined(names) {
  const stamps = [...new Set(names.flatMap((name) => (history.series[name] ?? []).map(([ts]) => ts)))].sort((a, b) => a - b);
  return [stamps, ...names.map((name) => { const known = new Map(history.series[name] ?? []); return stamps.map((ts) => known.get(ts) ?? null); })];
}

function drawn(page) {
  const place = document.getElementById("lag-plot"), rates = document.getElementById("rate-plot");
  if (!place || !history || !page.group) return;
  const group = page.group.group, range = () => [history.start, history.end];
  plot(place, "lag", group, () => ({
    scales: { x: { range }, y: { range: (u, low, high) => [0, Math.max(1, (high ?? 0) * 1.08)] }, s: { range: (u, low, high) => [0, Math.max(1, (high ?? 0) * 1.08)] } },
    axes: [...axes("records behind"), { ...axes("seconds behind")[1], scale: "s", side: 1, grid: { show: false } }],
    series: [{ value: "{HH}:{mm}:{ss}" }, { label: "records behind", stroke: colour("--accent"), width: 2, fill: colour("--accent-bg"), points: { show: few } },
      { label: "seconds behind", scale: "s", stroke: colour("--warn"), width: 1.6, dash: [6, 4], points: { show: few } }],
  }), joined([`lag|${group}`, `seconds|${group}`]), 260);
  const topics = page.group.topics;
  plot(rates, "rates", `${group} ${topics}`, () => ({
    scales: { x: { range }, y: { range: (u, low, high) => [0, Math.max(1, (high ?? 0) * 1.08)] } }, axes: axes("records a second"),
    series: [{ value: "{HH}:{mm}:{ss}" }, { label: "read", stroke: colour("--good"), width: 2, points: { show: few } },
      ...topics.map((topic) => ({ label: `written to ${topic}`, stroke: colour("--soft"), width: 1.6, dash: [6, 4], points: { show: few } }))],
  }), joined([`out|${group}`, ...topics.map((topic) => `in|${topic}`)]), 170);
}

function leave() { forget(); asked = ""; }
