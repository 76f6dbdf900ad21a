"""Two agents under load, a broker, and what may happen to them; every ended agent is started again at once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from schemas.failpoints import EXIT_CODE, VARIABLE
from schemas.settings import Settings
from tests.chaos.broker import Broker
from tests.chaos.judge import Judge
from tests.chaos.traffic import Traffic
from tests.integration.agent_process import Agent

POINTS = (
    "after-decode",
    "after-update",
    "after-drift-send",
    "before-state-write",
    "after-state-write",
    "before-commit",
    "in-rebalance",
    "in-recovery",
    "while-dead-lettering",
)
FROZEN_AT = ("before-state-write", "after-drift-send", "before-commit", "after-decode")
RECOVERY_S = 30.0
PROGRESS_S = 90.0
POINT_S = 60.0
SETTLED_S = 30.0
BOOT_S = 8.0  # more than an agent needs to have its partitions
REBALANCE_AFTER_S = 10.0
ZOMBIE_S = 12.0  # past the 10 s session
FREEZE_S = 45.0
_POLL_S = 0.1


class Stuck(Exception):
    """No progress: offsets have not moved although there are records and nothing is broken any more."""


@dataclass
class Slot:
    """A place for one agent; what ends there by itself is started again, as a supervisor would."""

    name: str
    agent: Agent | None = None


@dataclass
class Row:
    """One fault, and how long until every partition's committed offset had moved again."""

    number: int
    fault: str
    kills: int
    seconds: float = 0.0
    exit_seconds: float | None = None
    too_early: int = 0
    note: str = ""


@dataclass
class Scene:
    """Everything that a fault may touch. program: what to run as the agent, as arguments for Python."""

    settings: Settings
    broker: Broker
    traffic: Traffic
    judge: Judge
    rng: random.Random
    program: Sequence[str]
    burst: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    slots: tuple[Slot, Slot] = field(default_factory=lambda: (Slot("a"), Slot("b")))
    restarts: list[str] = field(default_factory=list)

    def ration(self, faults_left: int) -> None:
        """Share what is left to send among the faults to come: most of it while one happens, the rest after it."""
        share = (self.traffic.count - self.traffic.sent) / (faults_left + 1)
        self.burst = round(share * 0.6)
        self.traffic.trickle = share * 0.4 / RECOVERY_S

    # agents

    def start(self, slot: Slot, program: Sequence[str] | None = None, **more: str) -> Agent:
        slot.agent = Agent(self.settings, program or self.program, **self.environment, **more)
        return slot.agent

    def tend(self) -> None:
        """Start again what has ended by itself."""
        for slot in self.slots:
            if slot.agent is not None and (code := slot.agent.process.poll()) is not None:
                said = slot.agent.log.strip().splitlines()
                self.restarts.append(f"{slot.name} ended with {code}: {said[-1][-300:] if said else ''}")
                time.sleep(0.5)
                self.start(slot)

    def kill(self, slot: Slot) -> float:
        """kill -9, and start another; returns when it happened."""
        assert slot.agent is not None
        slot.agent.kill()
        at = time.monotonic()
        self.start(slot)
        return at

    def stop(self, slot: Slot) -> tuple[float, int]:
        """SIGTERM; seconds until it has ended, and with what. The slot stays empty."""
        assert slot.agent is not None
        began = time.monotonic()
        try:
            code = slot.agent.terminate()
            if code == -signal.SIGTERM and not slot.agent.log:
                code = 0  # Python itself was still starting: there is nothing yet that could listen
        except Exception:  # noqa: BLE001 a process that does not end is a finding, not the end of the run
            slot.agent.kill()
            code = -9
        slot.agent = None
        return time.monotonic() - began, code

    def end(self) -> None:
        """Leave no process behind."""
        for slot in self.slots:
            if slot.agent is not None:
                slot.agent.process.send_signal(signal.SIGCONT)
                slot.agent.kill()

    # progress

    def wait(self, ask: Callable[[], Any], seconds: float, what: str, tending: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while not ask():
            if tending:
                self.tend()
            if time.monotonic() > deadline:
                raise Stuck(f"{what} within {seconds:g} s; committed {self.judge.group.committed()}, {self._tails()}")
            time.sleep(_POLL_S)

    def _tails(self) -> str:
        tails = [(slot.name, slot.agent.log.splitlines()[-3:]) for slot in self.slots if slot.agent is not None]
        return f"ends {self.judge.group.ends()}, agents {tails}, restarts {self.restarts[-3:]}"

    def committed(self) -> dict[int, int]:
        """Committed offsets, as soon as the broker tells them."""
        found: list[dict[int, int]] = []

        def ask() -> bool:
            if (committed := self.judge.group.committed()) is not None:
                found.append(committed)
            return bool(found)

        self.wait(ask, PROGRESS_S, "committed offsets could not be asked", tending=False)
        return found[-1]

    def moved(self, since: dict[int, int], begun: float) -> float:
        """Seconds from begun until every partition with records has been committed beyond `since`."""

        def ask() -> bool:
            now = self.judge.group.committed()
            if now is None:
                return False
            left = [partition for partition, offset in now.items() if offset <= since[partition]]
            if left and self.traffic.exhausted:
                ends = self.judge.group.ends()
                return ends is not None and all(now[partition] >= ends[partition] for partition in left)
            return not left

        self.wait(ask, PROGRESS_S, "no progress")
        return time.monotonic() - begun

    def drained(self) -> None:
        """Return once all that was sent is committed."""
        self.wait(
            lambda: self.judge.group.committed() == self.judge.group.ends() is not None, PROGRESS_S, "not drained"
        )

    def settled(self) -> bool:
        """Whether every agent has partitions, after some waiting: to kill one that has none proves little."""
        deadline = time.monotonic() + SETTLED_S
        while (owners := self.judge.group.owners()) != len(self.slots) and time.monotonic() < deadline:
            self.tend()
            time.sleep(_POLL_S)
        return owners == len(self.slots)

    def busy(self) -> None:
        """A burst of readings, and a random moment in it."""
        self.traffic.burst(self.burst)
        time.sleep(self.rng.uniform(0.2, 1.0) * self.burst / self.traffic.rate)

    def check(self, row: Row) -> dict[int, int]:
        """What is committed at the moment, every effect of which must be on its topic."""
        committed = self.committed()
        row.too_early += self.judge.check(committed)
        return committed


# Each fault fills in its row.


def killed(scene: Scene, row: Row, slots: Sequence[Slot], again: bool) -> None:
    """kill -9 at a random moment under load; again: those that come instead, too, while they start."""
    scene.busy()
    at = 0.0
    for slot in slots:
        at = scene.kill(slot)
        time.sleep(scene.rng.uniform(0, 0.5))
    before = scene.check(row)
    if again:
        time.sleep(scene.rng.uniform(2, 6))
        for slot in slots:
            at = scene.kill(slot)
        before = scene.check(row)
    row.seconds = scene.moved(before, at)


def at_points(scene: Scene, row: Row, points: dict[str, str]) -> None:
    """Agents that end themselves at a named point. points: `name:nth` by slot."""
    armed: dict[str, Agent] = {}
    for slot in scene.slots:
        if slot.name in points:
            _, code = scene.stop(slot)
            if code != 0:
                row.note += f" SIGTERM gave {code}"
            armed[slot.name] = scene.start(slot, **{VARIABLE: points[slot.name]})
    began = at = time.monotonic()
    waiting = dict(armed)
    bursting = shaken = False
    while waiting:
        if not bursting and (time.monotonic() - began > BOOT_S or all(map(_assigned, waiting.values()))):
            bursting = True
            scene.traffic.burst(scene.burst)
        for slot in scene.slots:
            agent = waiting.get(slot.name)
            if agent is None:
                continue
            code = agent.process.poll()
            if code is None and time.monotonic() - began > POINT_S:
                row.note += f" {points[slot.name]} not reached"
                agent.kill()
                code = EXIT_CODE
            if code is not None:
                if code != EXIT_CODE:
                    row.note += f" {points[slot.name]}: ended with {code}"
                at = time.monotonic()
                del waiting[slot.name]
                scene.start(slot)
        if not shaken and time.monotonic() - began > REBALANCE_AFTER_S:
            shaken = True  # a rebalance may be what it waits for
            for slot in scene.slots:
                if slot.name not in waiting and slot.agent is not None:
                    scene.stop(slot)
                    scene.start(slot)
        time.sleep(_POLL_S / 2)
    row.seconds = scene.moved(scene.check(row), at)


def _assigned(agent: Agent) -> bool:
    return "agent.assigned" in agent.log


def terminated(scene: Scene, row: Row, slot: Slot, alone: bool) -> None:
    """SIGTERM under load; alone: the other one carries on by itself for a while."""
    scene.busy()
    before = scene.committed()
    begun = time.monotonic()
    row.exit_seconds, code = scene.stop(slot)
    if code != 0:
        row.note += f"SIGTERM gave {code}"
    row.too_early += scene.judge.check(scene.committed())
    if alone:
        row.seconds = scene.moved(before, begun)
        before = scene.committed()
        scene.start(slot)
        scene.moved(before, begun)
        return
    before = scene.committed()
    scene.start(slot)
    row.seconds = scene.moved(before, begun)


def zombie(scene: Scene, row: Row, slot: Slot, point: str | None, then_kill: Slot | None) -> None:
    """Frozen past its session, woken after its partitions moved. point: where it freezes itself, as `name:nth`."""
    if point is not None:
        if (code := scene.stop(slot)[1]) != 0:
            row.note = f"SIGTERM gave {code} "
        agent = scene.start(slot, ("-m", "tests.chaos.frozen", point))
        process = psutil.Process(agent.process.pid)
        began = time.monotonic()
        bursting = False
        while process.status() != psutil.STATUS_STOPPED and time.monotonic() - began < POINT_S:
            if not bursting and (time.monotonic() - began > BOOT_S or _assigned(agent)):
                bursting = True
                scene.traffic.burst(scene.burst)
            time.sleep(_POLL_S)
        if process.status() != psutil.STATUS_STOPPED:
            row.note += f"{point} not reached, frozen at random"
            agent.process.send_signal(signal.SIGSTOP)
    else:
        scene.busy()
        assert slot.agent is not None
        agent = slot.agent
        agent.process.send_signal(signal.SIGSTOP)
    at = time.monotonic()
    row.seconds = scene.moved(scene.check(row), at)
    time.sleep(max(0.0, ZOMBIE_S - (time.monotonic() - at)))
    if then_kill is not None:
        scene.traffic.pause()  # nothing comes that would cover up what the zombie writes
        scene.drained()
    agent.process.send_signal(signal.SIGCONT)
    time.sleep(scene.rng.uniform(1, 3))
    if then_kill is not None:
        scene.kill(then_kill)
        scene.traffic.resume()
    before = scene.check(row)
    scene.traffic.burst(scene.burst // 2)
    scene.moved(before, at)


def broker_killed(scene: Scene, row: Row) -> None:
    """kill -9 of the broker under load; seconds from its return."""
    scene.busy()
    before = scene.committed()
    scene.broker.kill()
    scene.broker.start()
    back = scene.broker.answers()
    row.seconds = scene.moved(before, back)
    scene.check(row)


def broker_frozen(scene: Scene, row: Row) -> None:
    """The broker hangs; seconds from its return."""
    scene.busy()
    before = scene.committed()
    scene.broker.freeze()
    time.sleep(FREEZE_S)
    scene.broker.thaw()
    row.seconds = scene.moved(before, time.monotonic())
    scene.check(row)


def broker_absent(scene: Scene, row: Row) -> None:
    """Agents that start before the broker; seconds from its coming."""
    scene.busy()
    codes = [scene.stop(slot)[1] for slot in scene.slots]
    if any(codes):
        row.note += f"SIGTERM gave {codes}"
    before = scene.check(row)
    scene.broker.kill()
    for slot in scene.slots:
        scene.start(slot)
    time.sleep(6)
    scene.broker.start()
    back = scene.broker.answers()
    row.seconds = scene.moved(before, back)
