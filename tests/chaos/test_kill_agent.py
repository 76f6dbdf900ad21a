"""Nothing lost, nothing invented, nothing committed too early: `python -m tests.chaos.kill_agent`, the short form."""

from __future__ import annotations

import random

import pytest

from tests.chaos.faults import POINTS
from tests.chaos.kill_agent import AGENT, run

SEED = random.SystemRandom().randrange(10**6)


@pytest.mark.timeout(900)
def test_agents_killed_at_every_point_and_at_random_leave_what_an_undisturbed_one_would(tmp_path):
    """The promise that everything else stands on; the long form (200 kills, a million readings) runs by hand."""
    print(f"seed {SEED}")
    measured, verdict = run(
        kills=20, readings=60_000, seed=SEED, detector="raw", rate=3_000, name="short", folder=tmp_path
    )
    figures = measured.figures
    assert verdict.clean, (SEED, verdict.examples[:10])
    assert not figures["stuck"], SEED
    assert figures["kills"] >= 20
    assert figures["points_not_reached"] == 0, (SEED, measured.rows)
    assert figures["exits_not_0"] == 0
    assert verdict.expected_ids > 100
    assert sum(point in row["fault"] for row in measured.rows for point in POINTS) >= len(POINTS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("bug", "plan"),
    [
        ("commit-before-work", {"kills": 1, "name": "kills"}),
        ("no-offset-guard", {"kills": 1, "name": "points", "at": ["before-commit"]}),
        ("acknowledge-on-error", {"kills": 0, "name": "calm"}),
        ("no-finite-check", {"kills": 0, "name": "calm"}),
    ],
)
def test_a_planted_bug_is_found(settings, bug, plan):
    """A judge that finds nothing in an agent that loses readings would find nothing anywhere."""
    _, verdict = run(
        readings=12_000,
        seed=7,
        detector="raw",
        rate=3_000,
        folder=settings.home,
        program=("-m", "tests.chaos.planted", bug),
        settings=settings,
        **plan,
    )
    assert not verdict.clean


@pytest.mark.parametrize("detector", ["raw", "per-feature"])
def test_an_agent_without_a_bug_is_found_clean(settings, detector):
    """Nor may it find what is not there. `per-feature` has windows that are not full yet in each of its states."""
    measured, verdict = run(
        kills=1,
        readings=12_000,
        seed=7,
        detector=detector,
        rate=3_000,
        name="kills",
        folder=settings.home,
        program=AGENT,
        settings=settings,
    )
    assert verdict.clean, verdict.examples[:10]
    assert verdict.missing_ids == verdict.lost == 0
    assert measured.figures["kills"] == 1
