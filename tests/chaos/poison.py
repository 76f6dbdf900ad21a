"""The corpus through the agent's core, and with `--live` through a running agent, good readings in between.

Prints what did not become what it should, and the longest time for which no good reading was committed.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from schemas.settings import Settings
from schemas.topology import ACTIVITY
from streams import topics
from streams.kafka import producer_config
from streams.producer import messages
from streams.records import Record
from streams.simulator import simulate
from tests.bench.report import Measurement, parser, show
from tests.chaos.broker import Broker
from tests.chaos.core import Core
from tests.chaos.corpus import DUPLICATE, NOW, VALID, Case, cases
from tests.chaos.judge import Group
from tests.integration.agent_process import DEAD_LETTERS, Agent, eventually, read

RATE = 1_000  # messages a second, to the live agent


def became(case: Case, core: Core, offset: int) -> tuple[str, float]:
    """What a case became, as `expected` would say it, and the seconds that it took; offset: of its first message."""
    records = [Record(offset, NOW, case.key, case.before)] if case.before is not None else []
    if records:
        core.process(records)
    begun = time.perf_counter()
    outcome = core.process([Record(offset + 1, NOW, case.key, case.value)])
    took = time.perf_counter() - begun
    if outcome.rejections:
        (rejection,) = outcome.rejections
        return rejection.reject_class, took
    if outcome.readings == 0 and outcome.duplicates:
        return DUPLICATE, took
    good = outcome.readings == case.good_readings if case.expected == VALID else outcome.readings
    return (VALID if good else f"{outcome.readings} readings"), took


def through_the_core(settings: Settings) -> Iterator[tuple[Case, str, float]]:
    """Each case with what it became (`raised …` if the core raised) and the seconds that it took."""
    core = Core(settings, 0)
    for number, case in enumerate(cases()):
        try:
            found, took = became(case, core, 2 * number)
        except Exception as error:  # noqa: BLE001 that is the finding
            found, took = f"raised {type(error).__name__}: {error}", 0.0
            core = Core(settings, 0)
        yield case, found, took


def through_an_agent(settings: Settings) -> tuple[list[str], dict[str, float]]:
    """What went wrong in a running agent, and figures. Good readings stand between the cases, on every partition."""
    found = cases()
    good = messages(simulate(24, len(found) * 3 / 50 / 24 + 1, 5, NOW))
    producer = Producer(producer_config(settings, **{"message.max.bytes": 2_000_000}))
    places: dict[tuple[int, int], Case] = {}
    sent = 0

    def send(key: bytes | None, value: bytes | None, case: Case | None = None) -> None:
        def placed(error: Any, message: Any) -> None:
            assert error is None, error
            if case is not None:
                places[message.partition(), message.offset()] = case

        nonlocal sent
        sent += 1
        # The message's time is the corpus's: what is far ahead is so for ever.
        producer.produce(
            settings.topic(ACTIVITY), key=key, value=value, timestamp=round(NOW * 1000), on_delivery=placed
        )
        producer.poll(0)

    group = Group(settings)
    agent = Agent(settings)
    try:
        for _ in range(24):
            send(*next(good))
        producer.flush(30)
        eventually(lambda: group.committed() == group.ends(), what="the first readings")
        begun = last = time.monotonic()
        stall, before = 0.0, group.committed()
        for number, case in enumerate(found):
            if case.before is not None:
                send(case.key, case.before)
            send(case.key, case.value, case)
            send(*next(good))
            send(*next(good))
            while time.monotonic() < begun + number * 3 / RATE:
                now = group.committed()
                if now != before:
                    last, before = time.monotonic(), now
                stall = max(stall, time.monotonic() - last)
                producer.poll(0.01)
        assert producer.flush(60) == 0
        eventually(lambda: group.committed() == group.ends(), 120, what="all of it")
        seconds = time.monotonic() - begun
        alive = agent.process.poll() is None
        code = agent.terminate() if alive else agent.process.returncode
    finally:
        if agent.process.poll() is None:
            agent.kill()
    letters: dict[tuple[int, int], list[tuple[str, bytes | None, bytes | None]]] = {}
    for letter in read(settings, DEAD_LETTERS):
        told = dict(letter.headers())
        place = int(told["dlq.partition"]), int(told["dlq.offset"])
        letters.setdefault(place, []).append((told["dlq.class"].decode(), letter.key(), letter.value()))
    wrong = [f"agent ended with {code}"] if code else []
    for place, case in places.items():
        due = [] if case.expected in (VALID, DUPLICATE) else [(case.expected, case.key, case.value)]
        if letters.get(place, []) != due:
            wrong.append(f"{case.name}: {[each[0] for each in letters.get(place, [])]} instead of {case.expected}")
    wrong += [f"a good reading was dead-lettered: {letters[place]}" for place in letters.keys() - places.keys()]
    figures = {"messages": sent, "dead_letters": len(letters), "seconds": seconds, "longest_stall_s": stall}
    return wrong, figures


def main() -> None:
    """Exit 1 if anything did not become what it should."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--live", action="store_true", help="through a running agent as well")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else broker and agent would stay
    settings = Settings(_env_file=None, detector="raw")
    rows, by_group, slowest = [], Counter[str](), 0.0
    for case, found, took in through_the_core(settings):
        by_group[case.group] += 1
        slowest = max(slowest, took)
        if found != case.expected:
            rows.append({"case": case.name, "expected": case.expected, "became": found})
    figures = {"cases": by_group.total(), "wrong": len(rows), "slowest_ms": slowest * 1000}
    if given.live:
        with tempfile.TemporaryDirectory() as folder:
            broker = Broker(Path(folder) / "stack")
            broker.start()
            try:
                broker.answers()
                live = settings.model_copy(
                    update={"kafka_bootstrap": broker.address, "namespace": "poison.", "home": Path(folder) / "agent"}
                )
                topics.create(live)
                wrong, more = through_an_agent(live)
                figures |= {f"live_{name}": value for name, value in more.items()} | {"live_wrong": len(wrong)}
                rows += [{"case": text, "expected": "", "became": "(live)"} for text in wrong]
            finally:
                broker.kill()
    show(Measurement("poison", {"groups": dict(by_group)}, figures, rows), given.json)
    sys.exit(1 if rows else 0)


if __name__ == "__main__":
    main()
