"""One broken sensor, or one enemy, costs a dead letter a message, and nobody else anything."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.activity import CHANNELS, REJECT_CLASSES
from schemas.errors import Reject
from schemas.settings import Settings
from streams import topics
from streams.gate import decode, decode_chunk
from streams.intake import Intake, Names
from streams.records import Record, chunk_of
from tests.chaos.core import Core
from tests.chaos.corpus import DUPLICATE, NOW, VALID, cases
from tests.chaos.poison import through_an_agent, through_the_core

RAW = Settings(_env_file=None, detector="raw")


def test_each_message_of_the_corpus_becomes_what_it_should():
    """A thousand ways to be wrong, or odd but right: none raises, and each is called by what is wrong with it."""
    wrong = [f"{case.name}: {found}" for case, found, _ in through_the_core(RAW) if found != case.expected]
    assert wrong == []


def test_each_becomes_the_same_when_all_come_at_once():
    """What the columns of a chunk make of a message must not depend on its neighbours."""
    core, records, expected = Core(RAW, 0), [], {}
    for case in cases():
        if case.before is not None:
            records.append(Record(len(records), NOW, case.key, case.before))
        if case.expected not in (VALID, DUPLICATE):
            expected[len(records)] = case.expected
        records.append(Record(len(records), NOW, case.key, case.value))
    outcome = core.process(records)
    found = {rejection.record.offset: rejection.reject_class for rejection in outcome.rejections}
    assert found == expected


def test_a_running_agent_dead_letters_the_corpus_and_processes_what_stands_between(settings):
    """The same through Kafka: dead letters as they came, by class, and no good reading among them."""
    topics.create(settings)
    wrong, figures = through_an_agent(settings.model_copy(update={"detector": "raw"}))
    assert wrong == []
    assert figures["dead_letters"] > 800


VALUES = sorted({case.value for case in cases() if case.value and len(case.value) < 2000})
mutated = st.builds(
    lambda value, at, cut, put: value[: at % len(value)] + put + value[at % len(value) + cut :],
    st.sampled_from(VALUES),
    st.integers(0, 2000),
    st.integers(0, 3),
    st.binary(max_size=3)
    | st.sampled_from([b"1e999", b"NaN", b"-", b"0", b'"', b"null", b"[", b"]", b",", b"\\ud800"]),
)
record = st.builds(
    lambda value, key: (key, value), st.sampled_from(VALUES) | mutated, st.sampled_from([..., None, b"x"])
)


def device_of(value: bytes) -> bytes | None:
    try:
        return str(json.loads(value)["device"]).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


@given(st.lists(record, min_size=1, max_size=6))
@settings(max_examples=500, deadline=None)
def test_a_chunk_of_anything_is_judged_record_by_record_and_lets_nothing_impossible_through(pairs):
    """Anything but a rejection would stop the agent at that record, again after every restart."""
    keyed = [(device_of(value) if key is ... else key, value) for key, value in pairs]
    chunk = chunk_of([Record(offset, NOW, key, value) for offset, (key, value) in enumerate(keyed)])
    singly = {}
    for index in range(len(chunk)):
        try:
            decode(chunk.record(index))
        except Reject as reject:
            assert reject.reject_class in REJECT_CLASSES
            assert reject.reason
            singly[index] = reject.reject_class
    names, intake = Names(), Intake()
    rows, rejections = decode_chunk(chunk, names)
    assert {rejection.record.offset: rejection.reject_class for rejection in rejections} == singly
    intake.reserve(len(names))
    taken = intake.take(rows, chunk)
    assert {rejection.reject_class for rejection in taken.rejections} <= set(REJECT_CLASSES)
    assert not singly.keys() & {rejection.record.offset for rejection in taken.rejections}
    for channel, column in zip(CHANNELS, taken.readings.values.T, strict=True):
        there = column[~np.isnan(column)]
        assert ((there >= channel.low) & (there <= channel.high)).all()
        assert len(there) == len(column) or not channel.required


def test_a_fuzzer_finds_nothing_in_twenty_seconds(tmp_path):
    """What a coverage-guided fuzzer makes of the corpus; `python -m tests.chaos.fuzz 1800` by hand."""
    if find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python or machine")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz", "20"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
