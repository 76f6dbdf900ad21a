"""Which activity a window shows: from its label, else from the profile's classifier.

A detector that did not ask would alarm each time a person sits down.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.activity import ACTIVITIES
from streams.windows import MAX_GAP_S, NO_LABEL, Floats, Ints, Windows

Mask = NDArray[np.bool_]
Source = Literal["auto", "label", "model"]

NOT_JUDGED: Final = -2
SMOOTHED_WINDOWS: Final = 3  # an activity lasts longer than a window, a mistake does not
UNLABELLED_WINDOWS: Final = 24  # after so many without, a device no longer sends labels


class Conditioner:
    """One device's activities, window by window."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.recent: Floats = np.empty((0, len(ACTIVITIES)))  # probabilities of the last windows
        self.last_end = -np.inf
        self.labelled = False
        self.unlabelled = 0  # windows in a row

    def activities(self, windows: Windows, probabilities: Floats) -> tuple[Ints, Mask, Floats, list[bool]]:
        """For n windows: codes (n,), NOT_JUDGED for a window of two activities or of an unknown one; whether a label
        says so (n,); what is believed of each activity (n, 6); and whether time was lost before it, so that it begins a
        new bout.
        """
        earlier = len(self.recent)
        before = np.concatenate([[self.last_end], windows.end[:-1]])
        gaps = (windows.start - before > MAX_GAP_S).tolist()
        known = np.concatenate([self.recent, probabilities])
        first = 0
        codes = np.empty(len(windows), np.int64)
        for row, gap in enumerate(gaps):
            if gap:
                first = earlier + row
            since = max(first, earlier + row - SMOOTHED_WINDOWS + 1)
            total = known[since : earlier + row + 1].sum(0)
            codes[row] = total.argmax() if total.any() else NOT_JUDGED  # without a profile nothing is believed
        self.recent = known[max(first, len(known) - SMOOTHED_WINDOWS + 1) :].copy()
        self.last_end = float(windows.end[-1])
        if self.source == "model" or (
            self.source == "auto" and not self.labelled and (windows.labels == NO_LABEL).all()
        ):
            return codes, np.zeros(len(windows), np.bool_), probabilities, gaps
        believed = probabilities.copy()
        for row, label in enumerate(windows.labels.tolist()):
            self.unlabelled = self.unlabelled + 1 if label == NO_LABEL else 0
            # A window without a label among labelled ones holds two. A device that goes on without is asked otherwise.
            self.labelled = label != NO_LABEL or (self.labelled and self.unlabelled <= UNLABELLED_WINDOWS)
            if label != NO_LABEL:
                codes[row] = label
                believed[row] = 0.0
                believed[row, label] = 1.0
            elif self.labelled or self.source == "label":
                codes[row] = NOT_JUDGED
        return codes, windows.labels != NO_LABEL, believed, gaps

    def dump(self) -> Any:
        """State as plain values."""
        return [
            self.recent.tobytes(),
            self.last_end if np.isfinite(self.last_end) else None,
            self.labelled,
            self.unlabelled,
        ]

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        recent, last_end, self.labelled, self.unlabelled = state
        self.recent = np.frombuffer(recent).reshape(-1, len(ACTIVITIES))
        self.last_end = -np.inf if last_end is None else last_end
