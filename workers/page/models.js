// Which versions there are, why each was made, how its candidates did, and what was decided against.

import { ago, at, card, get, h, number, pill, s, score, span } from "./dom.js";

const confusions = new Map();
export const models = { draw };

async function draw(page) {
  const found = await get("/api/models");
  const [newest] = found.versions, chosen = page.params.get("version");
  if (chosen && !confusions.has(chosen)) confusions.set(chosen, null);
  for (const each of found.versions.slice(0, 2)) if (!confusions.has(each.data.version)) confusions.set(each.data.version, null);
  await Promise.all([...confusions].filter(([, known]) => known === null).map(async ([version]) => {
    confusions.set(version, (await get(`/api/models/${encodeURIComponent(version)}/confusion`)) ?? "none");
  }));
  return [
    h("h1", null, "Models"),
    newest ? duel(found, newest) : card(null, h("p", { cls: "empty" }, "No version is registered yet.")),
    ...found.versions.map((each) => version(each)),
    card("Decisions", found.decisions.length ? h("div", { cls: "scroll" }, h("table", null, h("thead", null, h("tr", null, ["when", "about", "outcome", "why"].map((each) => h("th", { scope: "col" }, each)))),
      h("tbody", null, found.decisions.map((each) => h("tr", { "data-key": each.id }, h("td", null, at(each.written)), h("td", null, each.data.about), h("td", null, pill(each.data.outcome, "accent")),
        h("td", null, h("a", { href: `/chain/${encodeURIComponent(each.id)}` }, page.topology.reasons[each.data.reason] ?? each.data.reason), h("div", { cls: "soft small" }, each.data.detail))))))) :
      h("p", { cls: "empty" }, "None so far. A retraining or deployment that is not done leaves its reason here.")),
  ];
}

// The last challenger beside the champion that it was compared with, on the same held-out windows.
function duel(found, newest) {
  const { champion, candidates, winner, version: made } = newest.data;
  const best = candidates.find((each) => each.name === winner);
  const rows = [["on the drifted data", best?.recent, champion?.recent], ["on data from before", best?.anchor, champion?.anchor]];
  const serving = found.champion === made ? "It serves." : found.champion ? `Version ${found.champion} serves.` : "";
  return card("The last challenger and the champion it had to beat",
    h("p", null, h("b", null, `version ${made}`), `, a ${winner}, `, champion ? ["against ", h("b", null, `version ${champion.version}`), ". "] : "was the first: there was none to beat. ", serving),
    h("div", { cls: "scroll" }, h("table", null, h("thead", null, h("tr", null, h("th", { scope: "col" }, "macro F1 on held-out windows"), h("th", { scope: "col", cls: "num" }, `version ${made}`), h("th", { scope: "col" }, ""), h("th", { scope: "col", cls: "num" }, champion ? `version ${champion.version}` : "no champion"), h("th", { scope: "col" }, ""), h("th", { scope: "col", cls: "num" }, "difference"))),
      h("tbody", null, rows.map(([name, one, other]) => h("tr", null, h("td", null, name), h("td", { cls: "num" }, score(one)), h("td", null, bar(one)), h("td", { cls: "num" }, score(other)), h("td", null, bar(other, "champion")),
        h("td", { cls: "num" }, one == null || other == null ? "–" : difference(one - other))))))));
}

const difference = (by) => (Math.abs(by) < 0.0005 ? "none" : pill(`${by > 0 ? "+" : "−"}${Math.abs(by).toFixed(3)}`, by > 0 ? "good" : "warn"));

const bar = (value, kind) => h("span", { cls: "bar", "aria-hidden": "true" }, s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" }, s("rect", { width: 100 * (value ?? 0), height: 10, cls: kind })));

function version(found) {
  const data = found.data, confusion = confusions.get(data.version);
  return h("section", { cls: "card", "data-key": data.version },
    h("div", { cls: "row" }, h("h2", null, `Version ${data.version}`), found.serves ? pill("serves", "good") : found.deployments.length ? pill("served before", "info") : pill("never deployed", "warn"),
      h("span", { cls: "soft small push" }, `registered ${ago(found.written)}`), h("a", { href: `/chain/${encodeURIComponent(found.id)}` }, "chain"), found.mlflow && h("a", { href: found.mlflow, target: "_blank", rel: "noopener" }, "MLflow")),
    h("p", { cls: "soft small" }, data.caused_by.length ? ["trained because of ", h("a", { href: `/chain/${encodeURIComponent(data.caused_by[0])}` }, data.caused_by.length > 1 ? `${data.caused_by.length} drifts` : "a drift")] : "the first training", ` on ${number(data.window.rows)} readings`, data.window.device ? ` of ${data.window.device}` : "",
      `; files ${data.digest.slice(0, 19)}…`),
    h("div", { cls: "grid" },
      h("div", { cls: "scroll" }, h("table", null, h("thead", null, h("tr", null, h("th", { scope: "col" }, "candidate"), h("th", { scope: "col", cls: "num" }, "drifted data"), h("th", { scope: "col", cls: "num" }, "from before"), h("th", { scope: "col", cls: "num" }, "fitted in"))),
        h("tbody", null, data.candidates.toSorted((a, b) => (b.recent ?? 0) - (a.recent ?? 0)).map((each) => h("tr", { cls: each.name === data.winner ? "chosen" : null }, h("td", null, each.name === data.winner ? h("b", null, `${each.name} ★`) : each.name), h("td", { cls: "num" }, score(each.recent)), h("td", { cls: "num" }, score(each.anchor)), h("td", { cls: "num nowrap" }, span(each.fit_seconds))))))),
      confusion && confusion !== "none" ? heat(confusion) : confusions.has(data.version) ? h("p", { cls: "soft small" }, "Its confusion matrix is not in MLflow, or MLflow cannot be asked.") : h("p", null, h("a", { href: `/models?version=${encodeURIComponent(data.version)}` }, "confusion matrix"))),
    found.deployments.map((each) => h("p", { cls: "small" }, h("span", { cls: "topic deployed" }, "deployed"), " ", at(each.written), ` to ${each.data.target}, in place of ${each.data.previous ?? "nothing"}; ${each.data.smoke.requests} smoke requests, p99 ${each.data.smoke.p99_ms.toFixed(0)} ms`)));
}

function heat({ activities, rows }) {
  return h("div", { cls: "scroll" }, h("table", { cls: "heat" }, h("caption", { cls: "soft small" }, "held-out windows: what they were (row), what it said (column)"),
    h("thead", null, h("tr", null, h("td", null), activities.map((each) => h("th", { scope: "col" }, each)))),
    h("tbody", null, rows.map((row, i) => {
      const sum = row.reduce((a, b) => a + b, 0) || 1;
      return h("tr", null, h("th", { scope: "row" }, activities[i]), row.map((count, j) => {
        const share = count / sum, level = i === j ? `h${share > 0.9 ? 3 : share > 0.6 ? 2 : 1}` : share > 0.15 ? "m2" : count ? "m1" : null;
        return h("td", { cls: level }, count ? number(count) : "·");
      }));
    }))));
}
