"""Events in words: whatever the loop decides, a person can read why."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from schemas.envelope import envelope
from schemas.events import (
    CandidateScore,
    ChampionScore,
    DecisionMade,
    DriftDetected,
    Event,
    ModelDeployed,
    ModelRegistered,
    OffsetRange,
    Position,
    QualityDegraded,
    Smoke,
    TrainingWindow,
)
from schemas.topology import DECISIONS
from streams.eventlog import Logged
from streams.statistics import STATISTICS
from workers.controller import WAITING
from workers.narrate import REASONS, line, plain, tell

ROOT = Path(__file__).parents[2]
# Which argument of which call is a reason; Reject's class becomes one where the deploy worker refuses a version.
CALLS = {"Decided": 1, "no": 1, "Declined": 1, "Decline": 1, "_rejected": 0, "_decision": 2, "Proof": 1}
REFUSING = (
    "deploy/modelfiles.py",
    "deploy/process.py",
    "deploy/rollout.py",
    "deploy/target.py",
    "deploy/trust.py",
    "deploy/image/append.py",
    "workers/baking.py",
    "workers/deploy.py",
)
HANDED_ON = {"reason", "reject_class"}  # attributes of a verdict or a reject, whose own call is looked at


def drift(**changes: object) -> DriftDetected:
    at = Position("activity", 2, 500)
    fields = {
        "device": "phone-07",
        "model": "activity",
        "feature": "userAcceleration.x",
        "statistic": "log-sd",
        "detector": "adwin",
        "severity": "critical",
        "effect": 4.21,
        "direction": "up",
        "before": -2.5,
        "after": -1.25,
        "ts": 1_700_000_100.0,
        "change_ts": 1_700_000_000.0,
        "position": at,
        "change_position": at,
        "episode": "e",
        "test": "statistic",
        "activity": "wlk",
    }
    return DriftDetected(**fields | changes)


def decision(reason: str = "not-better") -> DecisionMade:
    return DecisionMade(
        model="activity",
        about="retrain",
        outcome="rejected",
        reason=reason,
        detail="a gain of +0.001",
        concerns=["c"],
        ts=0.0,
    )


REGISTERED = ModelRegistered(
    model="activity",
    version="8",
    run_id="r",
    winner="random-forest",
    candidates=[CandidateScore(name="random-forest", recent=0.93, anchor=0.9, fit_seconds=1.0)],
    champion=ChampionScore(version="7", recent=0.61, anchor=0.95),
    window=TrainingWindow(topic="activity", ranges=[OffsetRange(0, 0, 9)], rows=9, sha256="s"),
    digest="sha256:0",
    caused_by=["c"],
)
DEPLOYED = ModelDeployed(
    model="activity",
    version="8",
    previous="7",
    target="process",
    endpoint="http://127.0.0.1:1",
    digest="sha256:0",
    smoke=Smoke(requests=20, p50_ms=3.2, p99_ms=9.0),
    reason="drift",
    caused_by="c",
)


def reasons_in(path: Path, rejects: bool) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        at = 0 if rejects and name == "Reject" else CALLS.get(name)
        if at is None or len(node.args) <= at:
            continue
        reason = node.args[at]
        if name == "_decision" and isinstance(reason, ast.Call | ast.Name):
            continue
        if isinstance(reason, ast.Name) and reason.id == "reason":
            continue  # a helper that hands on its argument
        branches = [reason.body, reason.orelse] if isinstance(reason, ast.IfExp) else [reason]
        for branch in branches:
            if isinstance(branch, ast.Attribute):
                assert branch.attr in HANDED_ON, f"{path.name}:{node.lineno}: where does this reason come from?"
            else:
                assert isinstance(branch, ast.Constant), f"{path.name}:{node.lineno}: write the reason out here"
                found.add(branch.value)
    return found


def test_every_reason_that_the_code_can_give_has_words():
    """A decision whose reason is a code alone tells a person nothing."""
    emitted = {"training-failed", "better-on-recent", "first-model", *WAITING}
    for path in (ROOT / "workers").glob("*.py"):
        emitted |= reasons_in(path, rejects=path.name in ("deploy.py", "registry.py"))
    for name in REFUSING:
        emitted |= reasons_in(ROOT / name, rejects=True)
    assert {"no-labels", "covered", "smoke", "not-ready", "older-version", "no-held-out-data"} <= emitted  # it looks
    assert emitted == set(REASONS), "words for each reason, and none for reasons that nothing gives"


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_decision_says_what_was_decided_why_and_the_figures(reason):
    """What is not done is the loop's most frequent answer."""
    assert tell(decision(reason)) == f"retrain rejected: {REASONS[reason]} (a gain of +0.001)"


def test_a_reason_of_a_newer_program_is_told_as_it_is():
    """Events outlive the program that reads them."""
    assert tell(decision("from-the-future")) == "retrain rejected: from-the-future (a gain of +0.001)"


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (
            drift(),
            "phone-07: the strength of userAcceleration.x (log) moved from -2.50 to -1.25 while walking, 4.2 σ, "
            "since 22:13:20 (critical)",
        ),
        (
            drift(statistic="mean", feature="gravity.x", activity=None),
            "phone-07: gravity.x moved from -2.50 to -1.25 g, 4.2 σ, since 22:13:20 (critical)",
        ),
        (
            QualityDegraded(
                device="p", model="m", channel="gravity.x", fault="stuck", ts=0.0, position=Position("a", 0, 0)
            ),
            "p: gravity.x is not measuring: its value is stuck",
        ),
        (
            QualityDegraded(
                device="p",
                model="m",
                channel="gravity.x",
                fault="gap",
                ts=0.0,
                position=Position("a", 0, 0),
                ended=True,
            ),
            "p: gravity.x measures again",
        ),
        (
            REGISTERED,
            "version 8, a random-forest, macro F1 0.930 on held-out data where version 7 has 0.610; 1 candidates tried",
        ),
        (
            DEPLOYED,
            "version 8 answers at http://127.0.0.1:1 in place of 7 (process, 20 smoke requests, p50 3 ms)",
        ),
    ],
)
def test_an_event_is_one_sentence_with_what_changed_and_by_how_much(event: Event, sentence):
    """`driftloop events` and the demo show nothing else."""
    assert tell(event) == sentence


@pytest.mark.parametrize("statistic", sorted({item.kind for item in STATISTICS} | {"value"}))
def test_every_statistic_that_is_watched_has_words(statistic):
    """A code such as rate-log-sd is for programs."""
    sentence = tell(drift(statistic=statistic))
    assert "userAcceleration.x" in sentence
    assert statistic not in sentence or statistic in ("mean", "value")


def test_a_line_shows_brackets_of_a_detail_instead_of_taking_them_for_colours():
    """`readings[3]` in a reason would otherwise vanish from the terminal."""
    event = msgspec.structs.replace(decision(), detail="[red]3[/] rows")
    logged = Logged(DECISIONS, 0, 4, 0.0, envelope(event, id="i" * 32, source="s", subject="", time=0.0))
    shown = io.StringIO()
    console = Console(width=500, file=shown)
    console.print(line(logged))
    assert "[red]3[/] rows" in shown.getvalue()


def test_an_event_as_values_says_where_it_lies_and_what_it_holds():
    """`driftloop events --json` is for scripts: they need the whole content and the identity."""
    logged = Logged(DECISIONS, 0, 4, 12.5, envelope(decision(), id="i", source="s", subject="x", time=0.0))
    assert plain(logged) == {
        "topic": "decisions",
        "partition": 0,
        "offset": 4,
        "written": 12.5,
        "id": "i",
        "type": "driftloop.decision.made.v1",
        "source": "s",
        "subject": "x",
        "time": "1970-01-01T00:00:00+00:00",
        "data": msgspec.to_builtins(decision()),
    }
