"""Processes of a stack found by their mark, when nobody who started them is left to ask."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.local.programs import MARK, NAME_MARK, SERVING_MARK

TERM_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Marked:
    """One process that carries the mark. serving: <model>-v<version> of a detached model server, else None."""

    process: psutil.Process
    name: str
    serving: str | None


def marked(home: Path) -> list[Marked]:
    """This user's processes of the stack in `home`, except the calling process and those that it descends from.

    A worker that calls `driftloop status` hands its mark to that command, which must not take itself, nor the worker
    that waits for it, for something left over.
    """
    found = []
    callers = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        if process.pid in callers:
            continue
        try:
            if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
            if environment.get(MARK) != str(home):
                continue
            name = environment.get(NAME_MARK) or process.name()
        except (psutil.Error, OSError):
            continue
        found.append(Marked(process, name, environment.get(SERVING_MARK)))
    return found


def left_over(found: list[Marked], owned: Iterable[int]) -> list[Marked]:
    """Those that are neither `owned` (process ids), nor below an owned one, nor serve a model."""
    owned = set(owned)
    return [
        each
        for each in found
        if each.serving is None and each.process.pid not in owned and not _lineage(each.process) & owned
    ]


def serving(found: list[Marked]) -> list[Marked]:
    """The detached model servers, without processes that one of them started."""
    servers = {each.process.pid for each in found if each.serving is not None}
    return [each for each in found if each.serving is not None and not _lineage(each.process) & servers]


def stop(found: list[Marked]) -> None:
    """End them: a supervisor that nobody can talk to first, so that it starts nothing anew; by force in the end."""
    supervisors = [each.process for each in found if _is_supervisor(each.process)]
    for processes, seconds in ((supervisors, 60), ([each.process for each in found], TERM_SECONDS)):
        _signal(processes, kill=False)
        _, alive = psutil.wait_procs(processes, timeout=seconds if processes else 0)
        _signal(alive, kill=True)
        psutil.wait_procs(alive, timeout=5)


def _signal(processes: list[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        try:
            process.kill() if kill else process.terminate()
        except psutil.Error:
            continue


def _is_supervisor(process: psutil.Process) -> bool:
    try:
        return "supervisor.supervisord" in process.cmdline()
    except psutil.Error:
        return False


def _lineage(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()
