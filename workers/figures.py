"""Two pictures of a training for its run in the registry: what the winner confuses, and what has drifted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from streams.windows import Floats, Ints

SHOWN_FEATURES: Final = 12
ANCHOR_COLOUR: Final = "#9aa5b1"
RECENT_COLOUR: Final = "#c2410c"


def confusion_figure(counts: Ints, classes: Sequence[str], title: str) -> Figure:
    """Counts (k, k) as from `evaluation.confusion`, shaded by each label's share, with the number in each cell."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = _figure(5.5, 5)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("the model's activity")
    axes.set_ylabel("labelled activity")
    axes.set_title(title)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return figure


def drift_effects(anchor: Floats, recent: Floats) -> Floats:
    """(k,) distance of the recent median from the anchor's, in anchor standard deviations, of (n, k) features."""
    spread = anchor.std(0)
    effects: Floats = (np.median(recent, 0) - np.median(anchor, 0)) / np.where(spread > 0, spread, 1)
    return effects


def feature_figure(anchor: Floats, recent: Floats, names: Sequence[str], title: str) -> Figure:
    """The most drifted features, one row each: where the anchor's values lie, and where the recent ones do.

    anchor (n, k), recent (m, k): features in the order of names. Boxes hold the middle half, whiskers 90 %.
    """
    effects = drift_effects(anchor, recent)
    shown = np.argsort(-np.abs(effects), kind="stable")[:SHOWN_FEATURES][::-1]
    spread = anchor[:, shown].std(0)
    scale = np.where(spread > 0, spread, 1)
    middle = np.median(anchor[:, shown], 0)
    figure = _figure(9, 1.5 + 0.45 * len(shown))
    axes = figure.subplots()
    boxes = []
    for values, colour, offset in ((anchor, ANCHOR_COLOUR, 0.17), (recent, RECENT_COLOUR, -0.17)):
        drawn = axes.boxplot(
            (values[:, shown] - middle) / scale,
            positions=np.arange(len(shown)) + offset,
            orientation="horizontal",
            widths=0.28,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
            boxprops={"facecolor": colour},
            manage_ticks=False,
        )
        boxes.append(drawn["boxes"][0])
    axes.set_yticks(range(len(shown)), [f"{names[index]}  {effects[index]:+.1f}" for index in shown])
    axes.set_xlabel("distance from the anchor's median, in anchor standard deviations")
    axes.set_title(title)
    axes.legend(boxes, [f"anchor ({len(anchor)} windows)", f"recent ({len(recent)} windows)"])
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: pyplot would keep every one of a long-running worker's figures alive."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
