// What the detector sees of a device: each statistic over event time, activities as bands, changes with before and after.

import { axes, colour, forget, loadPlots, plot } from "./charts.js";
import { ago, at, card, clock, eventLine, get, h, number, pill } from "./dom.js";

const HUES = { dws: "#b07aa1", ups: "#59a14f", sit: "#4e79a7", std: "#edc948", wlk: "#f28e2b", jog: "#e15759" };
let shown = null;

export const devices = { draw, drawn, leave: () => { forget(); shown = null; } };

async function draw(page) {
  const known = await get("/api/devices");
  if (!known.length) return [h("h1", null, "Devices"), card(null, h("p", { cls: "empty" }, "No device has shown anything yet. The agent writes window statistics of a few devices, and every drift, to its topics."))];
  const name = page.rest || known[0].device;
  shown = await get(`/api/devices/${encodeURIComponent(name)}`);
  if (shown.ends.length) await loadPlots();
  return [
    h("h1", null, "Devices"),
    h("div", { cls: "split" },
      h("nav", { cls: "card side", "aria-label": "Devices" }, h("ul", { cls: "list" }, known.map((each) => h("li", { "data-key": each.device },
        h("a", { cls: "item", href: `/devices/${encodeURIComponent(each.device)}`, "aria-current": each.device === name ? "true" : null },
          h("span", { cls: "row" }, h("b", null, each.device), h("span", { cls: "push" }, each.drifts ? pill(`${each.drifts} ${each.drifts === 1 ? "drift" : "drifts"}`, "warn") : each.faults ? pill("fault", "bad") : pill("steady", "good"))),
          h("span", { cls: "soft small" }, each.last ? `last window ${clock(each.last)}` : "no statistics shown")))))),
      h("div", { cls: "stack" }, device(shown, page))),
  ];
}

const order = (found) => {
  const moved = new Map(found.drifts.map((each) => [`${each.data.feature} ${each.data.statistic}`, each.data.effect]));
  return found.statistics.map((name, column) => ({ name, column, effect: moved.get(name) ?? 0 })).sort((a, b) => b.effect - a.effect || a.column - b.column);
};

function device(found, page) {
  const present = [...new Set(found.activities)].filter((each) => each);
  return [
    h("section", { cls: "card" }, h("div", { cls: "row" }, h("h2", null, found.device), h("span", { cls: "soft small push" }, found.ends.length ? `${number(found.ends.length)} windows, ${clock(found.ends[0])} to ${clock(found.ends.at(-1))} event time` : "")),
      found.drifts.length ? h("div", null, found.drifts.slice(-6).reverse().map(eventLine)) : h("p", { cls: "soft" }, "This device has not drifted."),
      found.faults.length > 0 && h("div", null, h("h3", null, "Faults of its sensors"), found.faults.slice(-4).reverse().map(eventLine))),
    found.ends.length === 0 ? h("p", { cls: "empty" }, "Its statistics are not shown: the agent shows those of a bounded number of devices.") : h("section", { cls: "card" },
      h("h2", null, "What the detector sees"),
      h("p", { cls: "legend" }, present.map((each) => h("span", null, h("i", { cls: `swatch a-${each}` }), page.topology.activities[each] ?? each)),
        h("span", null, "▏ when it changed, with the means before and after in the activity that is told; ┊ when that was told")),
      order(found).map(({ name, effect }) => h("div", { "data-key": `${found.device} ${name}` },
        h("h3", null, title(name), " ", effect > 0 && pill(`moved by ${effect.toFixed(1)} σ`, "warn")),
        h("div", { cls: "plot device-plot", "data-keep": true, "data-name": name, role: "img", "aria-label": `${title(name)} of ${found.device} over time` })))),
  ];
}

function title(name) {
  const [feature, kind] = name.split(" ");
  return { mean: `level of ${feature} (g)`, "log-sd": `strength of ${feature} (log)`, "rate-log-sd": `speed of ${feature} (log)`, "log-ratio": `strength of ${feature} against rotation (log)` }[kind] ?? name;
}

function drawn() {
  if (!shown?.ends.length || !globalThis.uPlot) return;
  for (const place of document.querySelectorAll(".device-plot")) {
    const name = place.dataset.name, column = shown.statistics.indexOf(name);
    if (column < 0) continue;
    const found = shown, drifts = found.drifts.filter((each) => `${each.data.feature} ${each.data.statistic}` === name).map((each) => each.data);
    plot(place, `device ${name}`, `${found.device} ${found.drifts.length} ${found.faults.length}`, () => ({
      cursor: { sync: { key: "device" } }, legend: { show: false },
      scales: { x: { time: true } }, axes: axes(""),
      series: [{}, { label: name, stroke: colour("--accent"), width: 1.2, points: { show: true, size: 3, fill: colour("--accent") } }],
      hooks: { drawClear: [bands], draw: [(u) => changes(u, drifts), faults] },
    }), [found.ends, found.values.map((row) => row[column])], 150);
  }
}

function bands(u) {
  const { left, top, width, height } = u.bbox, { ctx } = u;
  ctx.save();
  ctx.beginPath(); ctx.rect(left, top, width, height); ctx.clip();
  ctx.globalAlpha = 0.16;
  for (let i = 0; i < shown.ends.length;) {
    let j = i + 1;
    while (j < shown.ends.length && shown.activities[j] === shown.activities[i] && shown.ends[j] - shown.ends[j - 1] < 30) j++;
    const hue = HUES[shown.activities[i]];
    if (hue) {
      const from = u.valToPos(shown.ends[i] - 5, "x", true), to = u.valToPos(shown.ends[j - 1], "x", true);
      ctx.fillStyle = hue; ctx.fillRect(from, top, Math.max(1, to - from), height);
    }
    i = j;
  }
  ctx.restore();
}

function changes(u, drifts) {
  const { left, top, width, height } = u.bbox, { ctx } = u;
  ctx.save();
  ctx.beginPath(); ctx.rect(left, top, width, height); ctx.clip();
  for (const { change_ts: when, ts, before, after } of drifts) {
    const x = u.valToPos(when, "x", true), told = u.valToPos(ts, "x", true), reach = width / 8;
    ctx.strokeStyle = colour("--bad"); ctx.lineWidth = 2 * devicePixelRatio;
    line(ctx, x, top, x, top + height);
    ctx.setLineDash([3, 4]); line(ctx, told, top, told, top + height); ctx.setLineDash([]);
    ctx.lineWidth = 3 * devicePixelRatio;
    ctx.strokeStyle = colour("--good"); line(ctx, x - reach, u.valToPos(before, "y", true), x, u.valToPos(before, "y", true));
    ctx.strokeStyle = colour("--bad"); line(ctx, x, u.valToPos(after, "y", true), Math.max(told, x + reach), u.valToPos(after, "y", true));
  }
  ctx.restore();
}

function faults(u) {
  const { top, left, width } = u.bbox, { ctx } = u;
  ctx.save();
  ctx.fillStyle = colour("--bad");
  const begun = new Map(), draw = (from, to) => { const a = Math.max(left, u.valToPos(from, "x", true)), b = Math.min(left + width, u.valToPos(to, "x", true)); ctx.fillRect(a, top, Math.max(3, b - a), 5 * devicePixelRatio); };
  for (const { data } of shown.faults) {
    const key = `${data.channel} ${data.fault}`;
    if (!data.ended) { if (!begun.has(key)) begun.set(key, data.ts); }
    else if (begun.has(key)) { draw(begun.get(key), data.ts); begun.delete(key); }
  }
  for (const from of begun.values()) draw(from, shown.ends.at(-1));
  ctx.restore();
}

function line(ctx, x1, y1, x2, y2) { ctx.beginPath(); ctx.moveTo(x1, y1); ctx.lineTo(x2, y2); ctx.stroke(); }
