"""What the detector sees of a few devices, thinned out, for people to look at: the agent's side of the page.

Bounded in devices and in windows a device, so that looking never costs the hot path more than a hundredth.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from schemas.activity import ACTIVITIES
from schemas.events import WindowStatistics
from streams.confirmation import TESTED
from streams.measures import MEASURED
from streams.statistics import statistics
from streams.windows import NO_LABEL, Windows

# Every fourth window of a device, and no more than so many at once: a backlog is not shown in full.
STEP_S: Final = 5.12
MOST_AT_ONCE: Final = 64
# A device that has sent nothing for so long, in event time of the others, gives its place away.
SILENT_S: Final = 600.0
NAMES: Final = [f"{each.feature} {each.kind}" for each in MEASURED[:TESTED]]  # what a drift may be told of


class DeviceStatistics:
    """The devices that are shown: the first `most` that come; one that drifts takes the place of one that did not."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._shown: dict[str, float] = {}  # event time of the last window shown
        self._drifted: set[str] = set()

    def drifted(self, device: str) -> None:
        """Show this device from now on."""
        if device in self._shown or self.most == 0:
            self._drifted.add(device)
            return
        calm = [each for each in self._shown if each not in self._drifted]
        if len(self._shown) < self.most or calm:
            if len(self._shown) >= self.most:
                del self._shown[calm[0]]
            self._shown[device] = float("-inf")
            self._drifted.add(device)

    def of(self, device: str, windows: Windows) -> WindowStatistics | None:
        """What to show of newly completed windows of a device; None where there is nothing to show."""
        if not len(windows) or not self._has_place(device, float(windows.end[-1])):
            return None
        rows, last = [], self._shown[device]
        for row, end in enumerate(windows.end.tolist()):
            if end - last >= STEP_S - 0.1:
                rows.append(row)
                last = end
        if not rows:
            return None
        self._shown[device] = last
        chosen = np.asarray(rows[-MOST_AT_ONCE:], np.int64)
        # Whatever a detector measures of windows, these come first, or the first of these.
        measured = statistics(windows.values[chosen]) if windows.measures is None else windows.measures[chosen]
        values = np.round(measured[:, : len(NAMES)], 4)
        return WindowStatistics(
            device=device,
            statistics=NAMES[: values.shape[1]],
            ends=windows.end[chosen].tolist(),
            values=values.tolist(),
            activities=[None if code == NO_LABEL else ACTIVITIES[code] for code in windows.labels[chosen].tolist()],
        )

    def _has_place(self, device: str, ts: float) -> bool:
        if device in self._shown:
            return True
        if len(self._shown) >= self.most:
            for each, last in list(self._shown.items()):
                if ts - last > SILENT_S and each not in self._drifted:
                    del self._shown[each]
        if len(self._shown) >= self.most:
            return False
        self._shown[device] = float("-inf")
        return True


def encode(shown: WindowStatistics) -> tuple[bytes, bytes]:
    """Key and value for the `device-statistics` topic."""
    return shown.device.encode(), msgspec.json.encode(shown)
