"""The monitor's eyes: a thread for each thing that is looked at. Each goes on through a broker that is away."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import httpx
import msgspec
import structlog

from deploy.local import probes
from schemas.errors import Retry, Stop
from schemas.events import WindowStatistics
from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_TOPICS, DEVICE_STATISTICS, EVENT_TOPICS
from streams.current_model import CurrentModel
from streams.eventlog import read_events, read_records
from streams.lag import LagTracker, PartitionLag
from streams.lag_collector import Collector, RecordTimes
from streams.letters import SHOWN_BYTES, read_letters
from workers.history import History
from workers.processes import ask, busy
from workers.seen import NOT_LOOKED, Kafka, Seen, most, of_group, total

log = structlog.get_logger()

PROBE_S: Final = 2.0
# What is read of a dead-letter topic that was never read before; from then on the count goes on where it was.
FIRST_LETTERS: Final = 5_000
_LETTERS: Final = "dead-letters"
_READINGS: Final = re.compile(r"^driftloop_readings_total (\S+)$", re.MULTILINE)


class Watching:
    """The threads; `changed` is called after every round of lag and every event."""

    def __init__(self, settings: Settings, seen: Seen, history: History, changed: Callable[[], None]) -> None:
        self.settings = settings
        self.seen = seen
        self.history = history
        self.changed = changed
        self.stopping = threading.Event()
        self.turned = time.monotonic()
        self.current = CurrentModel(settings, self._current)
        loops = (self._lag, self._processes, self._events, self._statistics, self._letters)
        self.threads = [
            threading.Thread(target=self._again, args=(each,), name=each.__name__.strip("_"), daemon=True)
            for each in loops
        ]

    def start(self) -> None:
        """Begin."""
        self.current.start()
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End; what was counted is kept."""
        self.stopping.set()
        self.current.stop()
        for thread in self.threads:
            thread.join(timeout=5)

    def _again(self, loop: Callable[[], None]) -> None:
        while not self.stopping.is_set():
            try:
                loop()
            except (Retry, Stop) as error:
                log.warning("monitor.retry", of=threading.current_thread().name, error=str(error))
            except Exception:
                # The page must stay up whatever one of its eyes has met; what it does not see is told as unknown.
                log.exception("monitor.failed", of=threading.current_thread().name)
            self.stopping.wait(2)

    def _current(self, deployed: object) -> None:
        self.seen.current = self.current.latest
        self.changed()

    # Lag

    def _lag(self) -> None:
        collector = Collector(self.settings, self.settings.monitor_groups)
        tracker, times = LagTracker(), RecordTimes(self.settings)
        try:
            while not self.stopping.is_set():
                begun = time.monotonic()
                try:
                    look = collector.look()
                    at_work = busy(self.settings, self.seen.processes)
                    lags = tracker.take(look, times.of(look), at_work)
                except Retry as error:
                    self._unknown(str(error))
                else:
                    rates = _rates(tracker, look.ends)
                    seconds = time.monotonic() - begun
                    self.seen.kafka = Kafka(look, lags, rates, seconds, None, look.ts)
                    self.history.add(look.ts, self._points(lags, rates))
                self.turned = time.monotonic()
                self.seen.current_read = self.current.caught_up.is_set()
                self.changed()
                self.stopping.wait(max(0.1, self.settings.monitor_seconds - (time.monotonic() - begun)))
        finally:
            times.close()

    def _unknown(self, trouble: str) -> None:
        known = self.seen.kafka
        if known.trouble is None or known.trouble == NOT_LOOKED:
            log.warning("monitor.kafka-away", error=trouble)
        since = known.since if known.trouble else time.time()
        self.seen.kafka = Kafka(None, None, {}, 0.0, trouble, since or time.time())

    def _points(self, lags: list[PartitionLag], rates: Mapping[str, float]) -> dict[str, float]:
        points: dict[str, float | None] = {f"in|{topic}": rate for topic, rate in rates.items()}
        for group, each in of_group(lags).items():
            points[f"lag|{group}"] = total([one.lag for one in each if one.lag is not None])
            points[f"seconds|{group}"] = most([one.seconds for one in each])
            points[f"out|{group}"] = total([one.rate_out for one in each if one.rate_out is not None])
        points["readings"] = self.seen.readings_rate
        return {name: value for name, value in points.items() if value is not None}

    # Processes and servers

    def _processes(self) -> None:
        last: tuple[float, float] | None = None
        while not self.stopping.is_set():
            found = ask(self.settings, metrics=True)
            totals = [float(each) for one in found for each in _READINGS.findall(one.metrics)]
            now = (time.monotonic(), sum(totals))
            going_on = totals and last is not None and now[1] >= last[1]
            self.seen.readings_rate = (now[1] - last[1]) / (now[0] - last[0]) if going_on and last else None
            last = now if totals else None
            self.seen.processes = [replace(each, metrics="") for each in found]
            self.seen.servers = self._servers()
            self.stopping.wait(PROBE_S)

    def _servers(self) -> dict[str, str | None]:
        servers: dict[str, str | None] = {"kafka": self.seen.kafka.trouble}
        uri = self.settings.mlflow_tracking_uri
        if uri is not None and uri.startswith("http"):
            servers["mlflow"] = probes.trouble(f"{uri.rstrip('/')}/health")
        if self.settings.router_port:
            try:
                route = httpx.get(f"{self.settings.router_url}/-/route", timeout=2, trust_env=False).json()
                self.seen.routed = str(route["version"]) if route.get("version") else None
                servers["router"] = None
            except (httpx.HTTPError, ValueError, AttributeError, KeyError, TypeError):
                servers["router"] = "does not answer"
        return servers

    # Topics

    def _events(self) -> None:
        for logged in read_events(self.settings, EVENT_TOPICS, follow=True, stopping=self.stopping.is_set):
            if logged is None:
                self.seen.events_read = True
            elif self.seen.chain.add(logged) and self.seen.events_read:
                self.changed()

    def _statistics(self) -> None:
        for message in read_records(
            self.settings,
            [DEVICE_STATISTICS],
            follow=True,
            since=time.time() - (DEVICE_STATISTICS.retention_ms or 0) / 1000,
            stopping=self.stopping.is_set,
        ):
            if message is not None and message.value() is not None:
                try:
                    self.seen.take_statistics(msgspec.json.decode(message.value(), type=WindowStatistics))
                except msgspec.MsgspecError as error:
                    log.warning("statistics.unreadable", offset=message.offset(), error=str(error))

    def _letters(self) -> None:
        kept = self.history.remembered(_LETTERS) or {"places": [], "counts": []}
        places = {(topic, number): offset for topic, number, offset in kept["places"]}
        with self.seen.lock:
            self.seen.letter_counts.clear()
            self.seen.letter_counts.update({(topic, name): count for topic, name, count in kept["counts"]})
            self.seen.letters.clear()
        counted = dict(places)
        # What was counted before is read once more, as far as it is shown.
        for letter in read_letters(
            self.settings,
            DEAD_LETTER_TOPICS,
            follow=True,
            newest=FIRST_LETTERS,
            places={place: max(0, offset - 100) for place, offset in places.items()},
            stopping=self.stopping.is_set,
        ):
            if letter is None:
                if counted != places:
                    places = dict(counted)
                    self._remember_letters(places)
                continue
            place = (letter.topic, letter.partition)
            short = replace(letter, value=letter.value and letter.value[:SHOWN_BYTES])
            if letter.offset < counted.get(place, 0):
                with self.seen.lock:
                    self.seen.letters.append(short)
                continue
            self.seen.take_letter(short)
            counted[place] = letter.offset + 1

    def _remember_letters(self, places: Mapping[tuple[str, int], int]) -> None:
        counts = [[topic, name, count] for (topic, name), count in self.seen.counts().items()]
        self.history.remember(_LETTERS, {"places": [[*place, at] for place, at in places.items()], "counts": counts})
        self.changed()


def _rates(tracker: LagTracker, places: Mapping[tuple[str, int], int]) -> dict[str, float]:
    """Records a second by topic; without those that are not known yet."""
    rates: dict[str, float] = {}
    for topic, number in places:
        rate = tracker.rate_in(topic, number)
        if rate is not None:
            rates[topic] = rates.get(topic, 0.0) + rate
    return rates
