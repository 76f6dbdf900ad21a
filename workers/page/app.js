// Which view the address names, and the news that keep it fresh.

import { get, h, morph } from "./dom.js";
import { overview } from "./overview.js";
import { lag } from "./lag.js";
import { devices } from "./devices.js";
import { models } from "./models.js";
import { chain } from "./chain.js";
import { letters } from "./letters.js";

const VIEWS = [
  { path: "/", name: "Overview", view: overview },
  { path: "/lag", name: "Lag", view: lag },
  { path: "/devices", name: "Devices", view: devices },
  { path: "/models", name: "Models", view: models },
  { path: "/chain", name: "Chain", view: chain },
  { path: "/letters", name: "Dead letters", view: letters },
];
const main = document.getElementById("main"), nav = document.getElementById("nav"), state = document.getElementById("state");
const page = { topology: null, overview: null, params: new URLSearchParams(), rest: "", go, refresh };
let shown = null, drawing = false, again = false;

function go(path, { replace = false } = {}) {
  if (path === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", path);
  route(!replace);
}

function route(fresh) {
  const [, first, ...rest] = location.pathname.split("/");
  const chosen = VIEWS.find((each) => each.path === `/${first}`) ?? VIEWS[0];
  page.params = new URLSearchParams(location.search);
  page.rest = rest.map(decodeURIComponent).join("/");
  if (chosen !== shown) { shown?.view.leave?.(); main.replaceChildren(h("p", { cls: "empty" }, "Loading …")); }
  shown = chosen;
  document.title = `${chosen.name} · Driftloop`;
  morph(nav, h("nav", { id: "nav", "aria-label": "Views" }, VIEWS.map((each) =>
    h("a", { href: each.path, "aria-current": each === chosen ? "page" : null }, each.name))));
  if (fresh) { scrollTo(0, 0); main.focus({ preventScroll: true }); }
  refresh();
}

async function refresh() {
  if (drawing) { again = true; return; }
  drawing = true;
  const drawn = shown;
  try {
    page.topology ??= await get("/api/topology");
    page.overview ??= await get("/api/overview");
    const content = await drawn.view.draw(page);
    if (drawn === shown) {
      morph(main, h("main", { id: "main", tabindex: "-1" }, content));
      drawn.view.drawn?.(page, main);
    }
  } catch (error) {
    if (!main.querySelector(".card")) main.replaceChildren(h("p", { cls: "empty" }, `This view cannot be shown now: ${error.message}`));
  }
  drawing = false;
  if (again) { again = false; refresh(); }
}

function connection(text, kind) {
  state.textContent = text;
  state.className = `state ${kind}`;
}

function listen() {
  const source = new EventSource("/api/stream");
  source.addEventListener("overview", (event) => {
    page.overview = JSON.parse(event.data);
    connection(page.overview.kafka.trouble ? "live; Kafka unknown" : "live", page.overview.kafka.trouble ? "bad" : "live");
    refresh();
  });
  source.onerror = () => {
    connection("reconnecting …", "");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1500);
  };
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (!anchor || event.button || event.metaKey || event.ctrlKey || event.shiftKey || anchor.target) return;
  const href = anchor.getAttribute("href");
  if (href.startsWith("/") && !href.startsWith("/api")) { event.preventDefault(); go(href); }
});
addEventListener("popstate", () => route(true));
addEventListener("resize", refresh);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
route(false);
listen();
