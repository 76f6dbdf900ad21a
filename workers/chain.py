"""What caused an event and what it caused: the links that events carry, followed both ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.tree import Tree

from schemas.errors import UserError
from schemas.events import DecisionMade, DriftDetected, Event, ModelDeployed, ModelRegistered, SwitchRequested, event_id
from streams.eventlog import Logged
from workers.narrate import line

MOST_EVENTS = 50_000


def causes(event: Event) -> tuple[str, ...]:
    """Ids of the events that an event names as its reason."""
    match event:
        case ModelRegistered():
            return tuple(event.caused_by)
        case ModelDeployed():
            return (event.caused_by,)
        case DecisionMade():
            return tuple(event.concerns)
        case _:
            return ()


def facts(event: Event) -> list[str]:
    """Where an event's readings lie, what was tried, what runs: lines for the tree."""
    match event:
        case DriftDetected():
            at, since = event.position, event.change_position
            return [f"readings {at.topic}/{at.partition} {since.offset} … {at.offset}, confirmed by {event.test}"]
        case ModelRegistered():
            window = event.window
            ranges = ", ".join(f"{window.topic}/{item.partition} {item.start} … {item.end}" for item in window.ranges)
            kinds = " ".join(f"{name} {count}" for name, count in (window.activities or {}).items())
            tried = ", ".join(
                f"{each.name} {'–' if each.recent is None else f'{each.recent:.3f}'}" for each in event.candidates
            )
            return [
                f"learned from {ranges}: {window.rows} readings{f', windows {kinds}' if kinds else ''}",
                f"tried {tried}",
                f"digest {event.digest[:23]}…",
            ]
        case ModelDeployed():
            return [f"image {event.image}"] if event.image else [f"digest {event.digest[:23]}…"]
        case DecisionMade():
            evidence = ", ".join(f"{name} {value:g}" for name, value in (event.numbers or {}).items())
            return [f"{f'cause: {event.cause}; ' if event.cause else ''}{evidence}"] if evidence or event.cause else []
        case _:
            return []


@dataclass(frozen=True, slots=True)
class Around:
    """An event among those that it is connected with, oldest first: what led to it, and what it led to."""

    event: Logged
    before: list[Logged]
    after: list[Logged]


class Chain:
    """Events by id; the first record of an id counts. May be added to and asked by different threads."""

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._events: dict[str, Logged] = {}
        self._effects: dict[str, list[str]] = {}
        self._deployments: dict[str, Logged] = {}

    def add(self, logged: Logged) -> bool:
        """Take an event in; False if its id is known. The oldest is forgotten where there are too many."""
        with self._lock:
            id = logged.envelope.id
            if id in self._events:
                return False
            if len(self._events) >= self._most:
                oldest = next(iter(self._events))
                self._effects.pop(oldest, None)
                self._deployments.pop(oldest, None)
                del self._events[oldest]
            self._events[id] = logged
            for cause in causes(logged.envelope.event):
                self._effects.setdefault(cause, []).append(id)
            if isinstance(logged.envelope.event, ModelDeployed):
                self._deployments[id] = logged
            return True

    def all(self) -> list[Logged]:
        """Every event, as it came."""
        with self._lock:
            return list(self._events.values())

    def find(self, wanted: str, model: str | None = None) -> Logged:
        """The event of an id or the beginning of one, of a model's version, or `latest`. Raises UserError.

        model: whose version and latest event, where several loops share their topics.
        """
        known = self.all()
        if wanted == "latest" or (wanted.isdigit() and len(wanted) < 8):
            known = [each for each in known if model is None or each.envelope.event.model == model]
        models = [item for item in known if isinstance(item.envelope.event, ModelRegistered | ModelDeployed)]
        if wanted == "latest":
            if not known:
                raise UserError("there are no events yet")
            return max(models or known, key=lambda item: item.written)
        if wanted.isdigit() and len(wanted) < 8:
            for item in reversed(models):
                if getattr(item.envelope.event, "version", None) == wanted:
                    return item
            raise UserError(f"no event speaks of version {wanted}; `driftloop events` shows what there is")
        found = [item for item in known if item.envelope.id == wanted] or [
            item for item in known if item.envelope.id.startswith(wanted)
        ]
        if not found:
            raise UserError(f"no event's id begins with {wanted}; `driftloop events` shows what there is")
        if len(found) > 1:
            raise UserError(f"{len(found)} events' ids begin with {wanted}; give more of it")
        return found[0]

    def causes_of(self, logged: Logged) -> list[Logged]:
        """Events that it names, as far as they are still on their topics; of a deployment also its occasion: somebody's
        request, or the deployment that it is the way back from.
        """
        with self._lock:
            found = [self._events[id] for id in causes(logged.envelope.event) if id in self._events]
            return found + self._occasions(logged)

    def effects_of(self, logged: Logged) -> list[Logged]:
        """Events that name it, and deployments that it was the occasion of."""
        with self._lock:
            found = [self._events[id] for id in self._effects.get(logged.envelope.id, ()) if id in self._events]
            if isinstance(logged.envelope.event, ModelDeployed | SwitchRequested):
                found += [each for each in self._deployments.values() if logged in self._occasions(each)]
                asked = self._events.get(event_id("harmed", logged.envelope.id))
                found += [asked] if asked is not None else []
            return found

    def _occasions(self, logged: Logged) -> list[Logged]:
        """Of a deployment, whose `caused_by` names where its version comes from; and of a request to undo one."""
        event, id = logged.envelope.event, logged.envelope.id
        if isinstance(event, SwitchRequested):
            return [each for each in self._deployments.values() if event_id("harmed", each.envelope.id) == id]
        if not isinstance(event, ModelDeployed):
            return []
        asked = self._events.get(logged.envelope.root)
        if asked is not None and isinstance(asked.envelope.event, SwitchRequested):
            return [asked]
        if event.reason != "rollback":
            return []
        left = [
            each
            for each in self._deployments.values()
            if getattr(each.envelope.event, "version", None) == event.previous and each.written < logged.written
        ]
        return left[-1:]

    def around(self, logged: Logged) -> Around:
        """All that is connected with it, both ways."""
        before, after = list(self._walk(logged, up=True)), list(self._walk(logged, up=False))
        known = {each.envelope.id for each in (*before, logged, *after)}
        for each in list(before):  # what was decided on the way is part of the answer
            for effect in self.effects_of(each):
                if isinstance(effect.envelope.event, DecisionMade) and effect.envelope.id not in known:
                    known.add(effect.envelope.id)
                    before.append(effect)
        return Around(logged, *(sorted(each, key=lambda item: item.written) for each in (before, after)))

    def _walk(self, logged: Logged, *, up: bool) -> Iterator[Logged]:
        step = self.causes_of if up else self.effects_of
        seen, waiting = {logged.envelope.id}, step(logged)
        while waiting:
            each = waiting.pop()
            if each.envelope.id not in seen:
                seen.add(each.envelope.id)
                yield each
                waiting += step(each)

    def episode(self, logged: Logged) -> list[Logged]:
        """The other drifts of its episode: the same change, seen in other features."""
        event = logged.envelope.event
        if not isinstance(event, DriftDetected):
            return []
        return [
            each
            for each in self.all()
            if isinstance(each.envelope.event, DriftDetected)
            and each.envelope.event.episode == event.episode
            and each is not logged
        ]


def tree(chain: Chain, logged: Logged, notes: dict[str, list[str]] | None = None) -> Tree:
    """From the first causes down through the event, in bold, to what came of it. notes: by id, lines to add."""
    around = chain.around(logged)
    within = {each.envelope.id for each in (*around.before, around.event, *around.after)}
    roots = [each for each in around.before if not chain.causes_of(each)] or [logged]
    shown = Tree("because of" if around.before else "from", hide_root=True)
    drawn: set[str] = set()

    def draw(parent: Tree, each: Logged) -> None:
        id = each.envelope.id
        text = f"[bold reverse]{line(each)}[/]" if each is logged else line(each)
        if id in drawn:
            parent.add(f"[dim]… {id[:12]}, shown above[/]")
            return
        drawn.add(id)
        branch = parent.add(text)
        for note in (notes or {}).get(id, ()):
            branch.add(f"[dim]{escape(note)}[/]")
        missing = [cause for cause in causes(each.envelope.event) if cause not in within]
        for cause in missing:
            branch.add(f"[dim]caused by {escape(cause[:12])}, which is no longer on its topic[/]")
        for effect in sorted(chain.effects_of(each), key=lambda item: item.written):
            if effect.envelope.id in within:
                draw(branch, effect)

    for root in sorted(roots, key=lambda item: item.written):
        draw(shown, root)
    return shown
