"""Watching a version that has just been switched to: does it live, answer right, and answer fast enough."""

from __future__ import annotations

from typing import Final

from deploy.modelfiles import SmokeCases
from deploy.rollout import smoke
from deploy.target import Deployment, Target
from schemas.errors import Reject, Retry

REQUESTS: Final = 5
# A machine may be busy for a moment; a version that is slow or silent so many looks in a row is not busy.
_STRIKES: Final = 3
_PATIENCE: Final = 3.0


class Bake:
    """The looks at one version. slow_ms: median answer above which it is too slow."""

    def __init__(self, version: str, slow_ms: float) -> None:
        self.version = version
        self._slow_ms = slow_ms
        self._strikes = 0

    def look(self, target: Target, deployment: Deployment, cases: SmokeCases) -> Reject | None:
        """Why it has to go back: `crashed`, `smoke`, `slow` or `silent`; None if nothing speaks against it."""
        if (ended := target.ended(deployment)) is not None:
            return Reject("crashed", str(ended))
        try:
            seconds = self._slow_ms / 1000 * _PATIENCE
            took = smoke(deployment.endpoint, cases, requests=REQUESTS, seconds=seconds)
        except Retry as error:
            doubt = Reject("silent", str(error))
        except Reject as reject:
            if reject.reject_class != "slow":
                return reject
            doubt = reject
        else:
            if took.p50_ms <= self._slow_ms:
                self._strikes = 0
                return None
            doubt = Reject("slow", f"half of {REQUESTS} requests took more than {took.p50_ms:.0f} ms")
        self._strikes += 1
        return doubt if self._strikes >= _STRIKES else None
