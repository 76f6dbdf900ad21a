// uPlot, loaded when the first plot is drawn, in the page's colours.

let loading = null;
export function loadPlots() {
  loading ??= new Promise((resolve, reject) => {
    const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/uPlot.css" });
    const script = Object.assign(document.createElement("script"), { src: "/uPlot.js" });
    script.onload = () => resolve(globalThis.uPlot);
    script.onerror = () => { loading = null; reject(new Error("uPlot did not load")); };
    document.head.append(sheet, script);
  });
  return loading;
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const plots = new Map();

// Draws or updates the plot inside `place`. make: uPlot options without a size; data: columns, the first in seconds.
export function plot(place, name, shape, make, data, height = 220) {
  const known = plots.get(name), theme = matchMedia("(prefers-color-scheme: dark)").matches;
  const width = Math.max(200, place.clientWidth);
  if (known && known.place === place && known.shape === shape && known.theme === theme) {
    if (known.width !== width) { known.width = width; known.plot.setSize({ width, height }); }
    known.plot.setData(data);
    return known.plot;
  }
  known?.plot.destroy();
  place.replaceChildren();
  const made = new globalThis.uPlot({ width, height, ...make() }, data, place);
  plots.set(name, { plot: made, place, shape, theme, width });
  return made;
}

export function forget() {
  for (const { plot: made } of plots.values()) made.destroy();
  plots.clear();
}

export function axes(unit, more = {}) {
  const stroke = colour("--soft"), grid = { stroke: colour("--line"), width: 1 };
  const font = "12px system-ui, sans-serif";
  return [
    { stroke, grid, ticks: grid, font, values: "{HH}:{mm}", ...more.x },
    { stroke, grid, ticks: grid, font, size: 62, label: unit, labelSize: unit ? 16 : 0, labelFont: font, ...more.y },
  ];
}
