"""When a new version is sent back, and when it is only busy."""

from __future__ import annotations

import pytest

from deploy.target import Deployment
from schemas.errors import Reject, Retry
from schemas.events import Smoke
from workers import baking
from workers.baking import Bake

DEPLOYMENT = Deployment("process", "activity", "7", "sha256:7", "http://127.0.0.1:1", "handle")


class Target:
    why: Retry | Reject | None = None

    def ended(self, deployment):
        return self.why


def took(ms):
    return Smoke(requests=5, p50_ms=ms, p99_ms=ms)


@pytest.fixture
def looks(monkeypatch):
    """What a version that answers like this is told, look by look."""

    def told(*answers, target=None):
        bake, left = Bake("7", slow_ms=100), list(answers)

        def smoke(*_, **__):
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(baking, "smoke", smoke)
        found = [bake.look(target or Target(), DEPLOYMENT, None) for _ in range(len(answers) or 1)]
        return [each.reject_class if each else None for each in found]

    return told


def test_a_version_that_is_fast_and_right_stays(looks):
    assert looks(took(10), took(99), took(100)) == [None, None, None]


def test_one_wrong_answer_is_enough(looks):
    """It was right in the smoke test; the same question has had one answer since."""
    assert looks(took(10), Reject("smoke", "input 2")) == [None, "smoke"]


@pytest.mark.parametrize(
    ("doubt", "reason"),
    [(took(101), "slow"), (Reject("slow", "no answer in 1 s"), "slow"), (Retry("connection refused"), "silent")],
)
def test_a_version_is_slow_or_silent_only_if_it_stays_so(looks, doubt, reason):
    """A busy machine slows every version; going back would help nobody."""
    assert looks(doubt, doubt, took(10), doubt, doubt, doubt) == [None, None, None, None, None, reason]


@pytest.mark.parametrize("why", [Retry("was ended by signal 9"), Reject("crashed", "exit code 1")])
def test_a_version_that_ended_goes_back_at_once_whoever_ended_it(looks, why):
    """While it is new, nobody can tell whether it was the machine; the one before has proved itself."""
    target = Target()
    target.why = why
    assert looks(target=target) == ["crashed"]
