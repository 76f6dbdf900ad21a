"""`driftloop demo`: the whole loop on this machine, told as it happens, and the proof that it closed.

Several people's readings are played, the first model is trained and deployed, then one device drifts. The accuracy is
asked of the deployed endpoint over HTTP, on readings of that device that were never sent to Kafka: as they were before
the drift, the same ones drifted, and the same drifted ones again after the redeployment.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import psutil

from deploy.local import orphans
from schemas.activity import ACTIVITIES, CHANNEL_NAMES, SAMPLE_RATE_HZ
from schemas.errors import Retry, UserError, first_line
from schemas.events import DecisionMade, DriftDetected, ModelDeployed, ModelRegistered
from schemas.settings import Settings, load_settings
from schemas.topology import EVENT_TOPICS
from streams.eventlog import Logged, read_events
from streams.producer import produce
from streams.recording import Recording, spans
from streams.replay import end_ranges
from streams.windows import expected_windows
from workers import stack as stacks
from workers import targets
from workers.demo_report import Report, show
from workers.demo_script import DRIFT, Script, in_words, write_script
from workers.narrate import line

if TYPE_CHECKING:
    from rich.console import Console

BATCH: Final = 50
DEADLINE_S: Final = 300.0
RESTORED: Final = 0.05
REQUEST_READINGS: Final = 1_000
# So long the page stays for somebody at a terminal.
LOOK_S: Final = 300.0
_MIB: Final = 1024 * 1024
_Found = TypeVar("_Found")


def run_demo(settings: Settings, *, data: Path | None, keep: bool, as_json: bool, console: Console) -> int:
    """Run it; the exit code: 0 only if the loop closed and the accuracy came back."""
    if as_json:
        from rich.console import Console

        console = Console(stderr=True, highlight=False, soft_wrap=True)
    home = settings.home / "demo"
    stack = stacks.stack(load_settings(home=home))
    script = write_script(data)
    if home.exists():
        stack.down(console.print)
    shutil.rmtree(home, ignore_errors=True)
    report = Report(drift=DRIFT, device=script.device, home=str(home))
    demo = _Demo(script, report, home, console)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped then, too
    watched = not (keep or as_json or os.environ.get("CI")) and console.is_terminal and sys.stdin.isatty()
    try:
        try:
            demo.run(bool(data))
        except (Retry, UserError, httpx.HTTPError) as error:
            report.failure = first_line(error)
        if watched and report.page:  # somebody is there who may want to see what it came to
            show(report, keep=False, console=console, waits=LOOK_S)
            with suppress(KeyboardInterrupt):
                select.select([sys.stdin], [], [], LOOK_S)
    finally:
        if not keep:
            console.print("stopping")
            stack.down()
            with suppress(Retry, UserError):  # an engine that is away by now
                targets.clear(demo.settings)
    if as_json:
        print(json.dumps(asdict(report)))  # noqa: T201  the facts that were asked for
    elif not (watched and report.page):
        show(report, keep=keep, console=console)
    return 0 if report.closed else 1


class _Demo:
    def __init__(self, script: Script, report: Report, home: Path, console: Console) -> None:
        self.script = script
        self.report = report
        self.home = home
        self.console = console
        self.began = time.monotonic()
        self.settings = load_settings(home=home)
        self.log: Iterator[Logged | None] = iter(())
        self.seen: list[Logged] = []
        self.doing: Callable[[], str] = lambda: ""

    def run(self, real: bool) -> None:
        """The acts, in order."""
        script, report = self.script, self.report
        source = "recordings of MotionSense" if real else "synthetic readings"
        self._say(f"{len(script.learn)} devices with {source}; the stack is coming up")
        targets.prepare(self.settings, self._say)
        wanted = int(0.8 * sum(expected_windows(len(each) / SAMPLE_RATE_HZ) for each in script.learn))
        with self._step("stack up"):
            self.settings = stacks.start(
                self.settings,
                lambda text: None if text.startswith("created") else self._say(text),
                {
                    "DRIFTLOOP_FIRST_WINDOWS": str(wanted),
                    "DRIFTLOOP_RECENT_WINDOWS": "240",
                    "DRIFTLOOP_COOLDOWN_SECONDS": "20",
                    "DRIFTLOOP_VERDICT_WINDOWS": "80",
                    "DRIFTLOOP_VERDICT_SECONDS": "60",
                    "DRIFTLOOP_CALIBRATION_SECONDS": "300",
                    "DRIFTLOOP_ANCHOR_LOSS": "0.03",  # of a few hundred windows one bout is a point
                },
            )
        report.page = self.settings.monitor_url
        self._say(f"see it at [bold]{report.page}[/]")
        self._refuse_used_topic()
        self.log = read_events(self.settings, EVENT_TOPICS, follow=True)
        self._play(script.learn, "readings")
        with self._step("first model in service"):
            first = self._until(_deployed, "the first model", "retrain")
        report.versions["before"] = first.version
        self._await_route(first.version)
        report.accuracy["before"], report.windows = self._accuracy(script.asked, "before the drift")

        self._say(f"[bold]{script.device} drifts now: {in_words(DRIFT)}[/]")
        self._play(script.drifting, "readings with the drift")
        report.accuracy["during"], _ = self._accuracy(script.drifted, "during the drift")
        with self._step("drift detected"):
            self._until(lambda item: _drift_of(item, script.device), "the drift", "agent")
        with self._step("better model registered"):
            self._until(self._learned_from_drift, "the retraining", "retrain")
        with self._step("better model in service"):
            second = self._until(self._deployed_for_drift, "the deployment", "deploy")
        report.versions["after"] = second.version
        self._await_route(second.version)
        report.accuracy["after"], _ = self._accuracy(script.drifted, "after the redeployment")
        self._play(script.after, "more readings with the drift, that no version has learned from,")
        self._play([script.drifted], "and those that the endpoint was asked about")
        with self._step("verdict"):
            verdict = self._until(self._verdict_on(second), "the verdict", "retrain")
        report.verdict = {"outcome": verdict.outcome, "detail": verdict.detail, **(verdict.numbers or {})}
        self._trace(second)
        report.seconds["in all"] = round(time.monotonic() - self.began, 1)
        lost = report.accuracy["before"] - report.accuracy["after"]
        report.closed = lost <= RESTORED and "drift" in report.chain and verdict.outcome == "helped"
        if verdict.outcome != "helped":
            report.failure = f"the verdict is {verdict.outcome}: {verdict.detail}"
        elif not report.closed:
            report.failure = f"accuracy after is {lost:.2f} below before; more than {RESTORED:.2f}"

    def _say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:5.0f} s[/]  {text}")

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.report.seconds[name] = round(time.monotonic() - begun, 1)

    def _refuse_used_topic(self) -> None:
        held = sum(item.end - item.start for item in end_ranges(self.settings))
        if held:
            raise UserError(
                f"the activity topic of {self.settings.kafka_bootstrap} holds {held} records; the demo needs an empty "
                "one: unset DRIFTLOOP_KAFKA_BOOTSTRAP, or set DRIFTLOOP_NAMESPACE to a new name"
            )

    def _play(self, played: list[Recording], what: str) -> None:
        produced = produce(self.settings, played, batch=BATCH)
        if not produced.complete:
            raise Retry(f"{produced.failed} readings were not delivered: {dict(produced.reasons)}")
        self._say(f"{produced.delivered:,} {what} sent in {produced.messages:,} messages")

    def _until(self, wanted: Callable[[Logged], _Found | None], what: str, process: str) -> _Found:
        """Tell events until one is wanted; say meanwhile what the process is doing."""
        for earlier in self.seen:
            if (found := wanted(earlier)) is not None:
                return found
        doing = self._asker(process)
        deadline = time.monotonic() + DEADLINE_S
        with self.console.status(f"waiting for {what}") as status:
            for item in self.log:
                self._weigh()
                if item is None:
                    status.update(f"waiting for {what}: {doing()}")
                    if time.monotonic() > deadline:
                        logs = self.home / "logs"
                        raise Retry(
                            f"{what} did not come within {DEADLINE_S:.0f} s; {process} is {doing()}; see {logs}"
                        )
                    continue
                self.seen.append(item)
                self._say(line(item))
                if (found := wanted(item)) is not None:
                    return found
        raise Retry(f"{what} did not come: the event log ended")

    def _asker(self, process: str) -> Callable[[], str]:
        """What a process says that it is doing."""
        address = next(
            (each.address for each in stacks.stack(self.settings).status() if each.name == process and each.address),
            None,
        )

        def ask() -> str:
            try:
                return str(httpx.get(f"{address}/live", timeout=1).json()["doing"])
            except (httpx.HTTPError, ValueError, KeyError):
                return "not answering"

        return ask

    def _weigh(self) -> None:
        """Resident memory of the stack's processes now; the peak is reported."""
        total = 0
        for each in orphans.marked(self.home.resolve()):
            with suppress(psutil.Error):  # a process that ended meanwhile weighs nothing
                total += each.process.memory_info().rss
        self.report.peak_mib = max(self.report.peak_mib, round(total / _MIB))

    def _await_route(self, version: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.settings.router_url}/version", timeout=2).json().get("version") == version:
                    return
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.2)
        raise Retry(f"{self.settings.router_url} does not serve version {version}")

    def _accuracy(self, recording: Recording, when: str) -> tuple[float, int]:
        """Share of windows that the endpoint names right, and how many there are; asked bout by bout."""
        right = total = 0
        version = ""
        with httpx.Client(base_url=self.settings.router_url, timeout=30) as client:
            for start, end in spans(recording.trials, recording.labels):
                label = ACTIVITIES[int(recording.labels[start])]
                for first in range(start, end, REQUEST_READINGS):
                    readings = _as_json(recording, first, min(end, first + REQUEST_READINGS))
                    if expected_windows(len(readings) / SAMPLE_RATE_HZ) < 1:
                        continue
                    reply = client.post("/predict", json={"readings": readings})
                    reply.raise_for_status()
                    answer = reply.json()
                    version = answer["version"]
                    total += len(answer["windows"])
                    right += sum(window["activity"] == label for window in answer["windows"])
        accuracy = right / max(total, 1)
        self._say(f"version {version} names [bold]{accuracy:.1%}[/] of {total} windows right {when}")
        return round(accuracy, 4), total

    def _learned_from_drift(self, item: Logged) -> ModelRegistered | None:
        """The registration that a drift of our device has led to; another device's false alarm may come first."""
        event = item.envelope.event
        drifts = {each.envelope.id for each in self.seen if _drift_of(each, self.script.device)}
        return event if isinstance(event, ModelRegistered) and drifts & set(event.caused_by) else None

    def _deployed_for_drift(self, item: Logged) -> ModelDeployed | None:
        registered = {each.envelope.id for each in self.seen if self._learned_from_drift(each)}
        found = _deployed(item)
        return found if found is not None and found.caused_by in registered else None

    def _verdict_on(self, deployed: ModelDeployed) -> Callable[[Logged], DecisionMade | None]:
        """What finds the verdict on a deployment."""

        def wanted(item: Logged) -> DecisionMade | None:
            event = item.envelope.event
            ids = {each.envelope.id for each in self.seen if each.envelope.event == deployed}
            if isinstance(event, DecisionMade) and event.about == "verdict" and ids & set(event.concerns):
                return event
            return None

        return wanted

    def _trace(self, deployed: ModelDeployed) -> None:
        """The events that led to the deployment, backwards by the ids that they carry."""
        by_id = {item.envelope.id: item for item in self.seen}
        chain = self.report.chain
        chain["deployed"] = next(item.envelope.id for item in self.seen if item.envelope.event == deployed)
        registered = by_id.get(deployed.caused_by)
        if registered is None or not isinstance(registered.envelope.event, ModelRegistered):
            return
        chain["model-registered"] = registered.envelope.id
        chain["run"] = registered.envelope.event.run_id
        causes = [by_id[id] for id in registered.envelope.event.caused_by if id in by_id]
        if causes:
            chain["drift"] = causes[0].envelope.id


def _as_json(recording: Recording, start: int, end: int) -> list[dict[str, Any]]:
    rows = zip(recording.ts[start:end].tolist(), recording.values[start:end].tolist(), strict=True)
    return [
        {"device": recording.device, "ts": ts, **{k: round(v, 6) for k, v in zip(CHANNEL_NAMES, row, strict=True)}}
        for ts, row in rows
    ]


def _deployed(item: Logged) -> ModelDeployed | None:
    return item.envelope.event if isinstance(item.envelope.event, ModelDeployed) else None


def _drift_of(item: Logged, device: str) -> DriftDetected | None:
    event = item.envelope.event
    return event if isinstance(event, DriftDetected) and event.device == device else None
