"""Which activity a window shows: from its label, else from the profile's classifier.

A detector that did not ask would alarm each time a person sits down.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from schemas.activity import ACTIVITIES
from streams.windows import MAX_GAP_S, NO_LABEL, Floats, Windows

Source = Literal["auto", "label", "model"]

NOT_JUDGED: Final = -2
SMOOTHED_WINDOWS: Final = 3  # an activity lasts longer than a window, a mistake does not
UNLABELLED_WINDOWS: Final = 24  # after so many without, a device no longer sends labels


class Conditioner:
    """One device's activities, window by window."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.recent: list[list[float]] = []  # probabilities of the last windows
        self.last_end = -np.inf
        self.labelled = False
        self.unlabelled = 0  # windows in a row

    def activities(self, windows: Windows, probabilities: Floats) -> tuple[list[int], list[bool], Floats, list[bool]]:
        """For n windows: codes, NOT_JUDGED for a window of two activities or of an unknown one; whether a label says
        so; what is believed of each activity (n, 6); and whether time was lost before it, so that it begins a new bout.

        Plain numbers: a device seldom has more than a few windows at a time, too few for arrays to pay.
        """
        codes, gaps = [], []
        for start, end, known in zip(windows.start.tolist(), windows.end.tolist(), probabilities.tolist(), strict=True):
            gap = start - self.last_end > MAX_GAP_S
            self.last_end = end
            self.recent = [known] if gap else [*self.recent[1 - SMOOTHED_WINDOWS :], known]
            total = self.recent[0]
            for other in self.recent[1:]:
                total = [one + more for one, more in zip(total, other, strict=True)]
            most = max(total)
            codes.append(total.index(most) if most else NOT_JUDGED)  # without a profile nothing is believed
            gaps.append(gap)
        labels = windows.labels.tolist()
        known_labels = [label != NO_LABEL for label in labels]
        if self.source == "model" or (self.source == "auto" and not self.labelled and not any(known_labels)):
            return codes, [False] * len(codes), probabilities, gaps
        believed = probabilities.copy()
        for row, label in enumerate(labels):
            self.unlabelled = self.unlabelled + 1 if label == NO_LABEL else 0
            # A window without a label among labelled ones holds two. A device that goes on without is asked otherwise.
            self.labelled = label != NO_LABEL or (self.labelled and self.unlabelled <= UNLABELLED_WINDOWS)
            if label != NO_LABEL:
                codes[row] = label
                believed[row] = 0.0
                believed[row, label] = 1.0
            elif self.labelled or self.source == "label":
                codes[row] = NOT_JUDGED
        return codes, known_labels, believed, gaps

    def dump(self) -> Any:
        """State as plain values."""
        return [
            np.array(self.recent[1 - SMOOTHED_WINDOWS :]).tobytes(),
            self.last_end if np.isfinite(self.last_end) else None,
            self.labelled,
            self.unlabelled,
        ]

    def load(self, state: Any) -> None:
        """Continue from a dumped state."""
        recent, last_end, self.labelled, self.unlabelled = state
        self.recent = np.frombuffer(recent).reshape(-1, len(ACTIVITIES)).tolist()
        self.last_end = -np.inf if last_end is None else last_end
