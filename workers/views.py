"""What the monitor knows as plain values, a function for each view of the page; `/api` serves the same."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any, Final

from schemas.activity import ACTIVITIES
from schemas.events import DecisionMade, DriftDetected, ModelDeployed, ModelRegistered, QualityDegraded
from schemas.settings import Settings
from schemas.topology import AGENT_STATE, DEAD_LETTER_TOPICS, EVENT_TOPICS, REPLAYS, TOPICS
from streams.eventlog import Logged
from streams.lag import GROUPS, TROUBLE, PartitionLag, worst
from streams.letters import Letter, shown
from streams.quality import DEVICE
from workers.chain import Chain, causes
from workers.narrate import ACTIVITY_WORDS, REASONS, plain, tell
from workers.seen import NOT_LOOKED, Json, Seen, most, of_group, total

RECENT_S: Final = 900.0
_LAST_EVENTS: Final = 12
VERDICTS: Final = {  # by reason; of what nobody could measure nothing is said
    "better-after": "and it does better than the one before",
    "no-better": "though it does no better than the one before",
    "worse-after": "though it does worse than the one before",
}


def event_json(logged: Logged) -> Json:
    """An event with a sentence, and the ids that it names as its causes."""
    return {**plain(logged), "says": tell(logged.envelope.event), "causes": list(causes(logged.envelope.event))}


def topology(settings: Settings) -> Json:
    """Who writes and reads which topic; what the picture of the loop is drawn from."""
    hidden = (*DEAD_LETTER_TOPICS, AGENT_STATE, REPLAYS)
    return {
        "topics": [
            {
                "name": settings.topic(topic),
                "short": topic.name,
                "written_by": list(topic.written_by),
                "read_by": list(topic.read_by),
                "events": topic in EVENT_TOPICS,
            }
            for topic in TOPICS
            if topic not in hidden
        ],
        "groups": {f"{settings.namespace}{group}": settings.topic(topic) for group, topic in GROUPS.items()},
        "model": settings.model,
        "mlflow": _mlflow(settings),
        "actions": settings.monitor_actions,
        "reasons": REASONS,
        "activities": ACTIVITY_WORDS,
    }


def _mlflow(settings: Settings) -> str | None:
    """MLflow's address for a browser: inside names of a container network mean nothing there."""
    uri = settings.mlflow_public_url or settings.mlflow_tracking_uri or ""
    return uri if uri.startswith("http") else None


def overview(seen: Seen, settings: Settings, now: float | None = None) -> Json:
    """The loop at a glance."""
    now = time.time() if now is None else now
    kafka, events = seen.kafka, seen.events()
    drifts = [each for each in events if isinstance(each.envelope.event, DriftDetected)]
    return {
        "ts": now,
        "now": in_words(seen, settings, now),
        "kafka": {"trouble": kafka.trouble, "since": kafka.since, "look_seconds": kafka.seconds},
        "events_read": seen.events_read,
        "rates": kafka.rates,
        "readings_rate": seen.readings_rate,
        "groups": None if kafka.lags is None else groups(kafka.lags),
        "processes": [asdict(each) for each in seen.processes],
        "servers": seen.servers,
        "champion": _champion(seen, events, now),
        "last_drift": _last_drift(drifts, seen),
        "last_decision": _last(events, DecisionMade),
        "events": [event_json(each) for each in events[-_LAST_EVENTS:][::-1]],
        "letters": sum(seen.counts().values()),
        "counts": dict(Counter(each.topic.name for each in events)),
    }


def _champion(seen: Seen, events: list[Logged], now: float) -> Json | None:
    current = seen.current
    if current is None:
        return None
    since = [
        each.written
        for each in events
        if isinstance(each.envelope.event, ModelDeployed) and each.envelope.event.version == current.version
    ]
    score = next(
        (
            candidate.recent
            for each in reversed(events)
            if isinstance(registered := each.envelope.event, ModelRegistered) and registered.version == current.version
            for candidate in registered.candidates
            if candidate.name == registered.winner
        ),
        None,
    )
    kind = next(
        (
            each.envelope.event.winner
            for each in reversed(events)
            if isinstance(each.envelope.event, ModelRegistered) and each.envelope.event.version == current.version
        ),
        None,
    )
    return {
        "model": current.model,
        "version": current.version,
        "winner": kind,
        "score": score,
        "since": since[-1] if since else None,
        "age": now - since[-1] if since else None,
        "endpoint": current.endpoint,
        "target": current.target,
        "routed": seen.routed,
    }


def _last(events: list[Logged], kind: type) -> Json | None:
    return next((event_json(each) for each in reversed(events) if isinstance(each.envelope.event, kind)), None)


def _last_drift(drifts: list[Logged], seen: Seen) -> Json | None:
    """The most telling event of the last episode, and what came of the episode."""
    if not drifts:
        return None
    last = drifts[-1].envelope.event
    assert isinstance(last, DriftDetected)
    alike = [each for each in drifts if getattr(each.envelope.event, "episode", None) == last.episode]
    shown_one = max(alike, key=lambda each: getattr(each.envelope.event, "effect", 0.0))
    ids, came = set(), []
    for each in alike:
        for after in seen.chain.around(each).after:
            if after.envelope.id not in ids:
                ids.add(after.envelope.id)
                came.append(after)
    came.sort(key=lambda each: each.written)
    return {**event_json(shown_one), "features": len(alike), "led_to": [event_json(each) for each in came]}


def in_words(seen: Seen, settings: Settings, now: float) -> list[Json]:
    """What is going on, most important first. level: bad, busy, good or note; link: the view that tells more."""
    said: list[Json] = []

    def say(level: str, text: str, link: str) -> None:
        said.append({"level": level, "text": text, "link": link})

    if seen.kafka.trouble == NOT_LOOKED:
        say("busy", "Kafka is being asked for the first time.", "/lag")
    elif seen.kafka.trouble is not None:
        ago = f" since {_ago(now - seen.kafka.since)}" if seen.kafka.since else ""
        say("bad", f"Kafka cannot be asked{ago}: lag and rates are unknown.", "/lag")
    for each in seen.processes:
        if not each.live:
            say("bad", f"The {each.name} process does not answer.", "/")
    for name, trouble in seen.servers.items():
        if trouble is not None and name != "kafka":
            say("bad", f"{name} has trouble: {trouble}", "/")
    _say_lag(seen, settings, say)
    _say_work(seen, say)
    _say_faults(seen, say)
    _say_letters(seen, say, now)
    _say_drift(seen, say, now)
    current = seen.current
    if current is None and not seen.current_read:
        say("note", "Which model serves is not known yet.", "/models")
    elif current is None:
        say("note", "No model serves yet: the first one needs enough labelled readings.", "/models")
    elif current is not None and seen.routed is not None and seen.routed != current.version:
        say("busy", f"Version {current.version} is current; the router still sends to {seen.routed}.", "/models")
    if not any(each["level"] in ("bad", "busy") for each in said):
        serving = f" Version {current.version} serves." if current else ""
        said.insert(0, {"level": "good", "text": f"All is well: nothing lags, nothing waits.{serving}", "link": "/"})
    return said


def _say_lag(seen: Seen, settings: Settings, say: Any) -> None:
    """Our own groups one by one, everybody else's in a line."""
    ours = {f"{settings.namespace}{group}" for group in GROUPS}
    others = 0
    for name, each in of_group(seen.kafka.lags or []).items():
        verdict, lag = worst([one.verdict for one in each]), sum(one.waiting or 0 for one in each)
        if name not in ours:
            others += verdict in TROUBLE
            continue
        behind = most([one.seconds for one in each])
        told = f"{lag:,} records" + (f", {_ago(behind)}" if behind else "")
        soon = most([one.catch_up_s for one in each if one.waiting])
        link = f"/lag?group={name}"
        if verdict in TROUBLE:
            what = "has stopped reading" if verdict == "stop" else "makes no headway"
            say("bad", f"Group {name} {what}: {told} behind.", link)
        elif verdict == "rewind":
            say("busy", f"Group {name} went back to earlier records: {told} to read again.", link)
        elif verdict == "warn" and lag:
            why = next(one.why for one in each if one.verdict == "warn")
            say("busy", f"Group {name}: {why} ({told} behind).", link)
        elif lag and soon is not None and soon > 5:
            say("busy", f"Group {name} is {told} behind, and has caught up in {_ago(soon)}.", link)
    if others:
        groups_have = "group that is not ours has" if others == 1 else "groups that are not ours have"
        say("note", f"{others} {groups_have} stopped reading.", "/lag")


def _say_work(seen: Seen, say: Any) -> None:
    for each in seen.processes:
        if each.name not in ("retrain", "deploy") or not each.live or each.doing in ("", "idle", "starting"):
            continue
        if each.doing == "cooldown":
            say("note", "The retrain worker rests after a training.", "/models")
        else:
            say("busy", f"The {each.name} worker is at it: {each.doing}.", "/models")


def _say_drift(seen: Seen, say: Any, now: float) -> None:
    drifts = seen.events(DriftDetected)
    last = _last_drift(drifts, seen)
    if last is None:
        if seen.events_read:
            say("note", "Nothing has drifted so far.", "/devices")
        return
    data, came = last["data"], last["led_to"]
    doing = f" while {ACTIVITY_WORDS[data['activity']]}" if data.get("activity") in ACTIVITIES else ""
    what = (
        f"{data['device']} drifted {_ago(now - last['written'])} ago ({data['feature']}{doing}, {data['effect']:.1f} σ)"
    )
    by_topic = {each["topic"]: each["data"] for each in came}  # the last of each
    deployed, registered, decided = (by_topic.get(topic) for topic in ("deployed", "model-registered", "decisions"))
    link = f"/chain/{last['id']}"
    why = "" if decided is None else REASONS.get(decided["reason"], decided["reason"])
    if deployed is not None and deployed["reason"] == "rollback":
        say("note", f"{what}: version {deployed['previous']} was trained for it and sent back; "
            f"{deployed['version']} serves again.", link)  # fmt: skip
    elif deployed is not None:
        proof = f", {VERDICTS[decided['reason']]}" if decided and decided["reason"] in VERDICTS else ""
        say("note", f"{what}: version {deployed['version']} was trained for it and serves{proof}.", link)
    elif registered is not None and decided is not None and decided["about"] == "deploy":
        say("bad", f"{what}: version {registered['version']} was trained for it and is not deployed: {why}.", link)
    elif registered is not None:
        say("busy", f"{what}: version {registered['version']} is being deployed.", link)
    elif decided is not None:
        say("note", f"{what}: {decided['about']} {decided['outcome']}, because {why}.", link)
    else:
        say("busy", f"{what}: no decision yet.", link)


def open_faults(seen: Seen) -> list[QualityDegraded]:
    """What is told and not over: one for each device, channel and fault."""
    found: dict[tuple[str, str, str], QualityDegraded] = {}
    for each in seen.events(QualityDegraded):
        event = each.envelope.event
        assert isinstance(event, QualityDegraded)
        key = (event.device, event.channel, event.fault)
        if event.ended:
            found.pop(key, None)
        else:
            found[key] = event
    return list(found.values())


def _say_faults(seen: Seen, say: Any) -> None:
    faults = open_faults(seen)
    if not faults:
        return
    last = faults[-1]
    channel = "its sensor" if last.channel == DEVICE else last.channel
    more = len({each.device for each in faults} - {last.device})
    others = f" So {'has' if more == 1 else 'have'} {more} more {'device' if more == 1 else 'devices'}." if more else ""
    say("busy", f"{last.device} has a fault: {channel} ({last.fault}).{others}", f"/devices/{last.device}")


def _say_letters(seen: Seen, say: Any, now: float) -> None:
    newest = next(iter(seen.last_letters()), None)
    if newest is None or now - newest.written > RECENT_S:
        return
    count = sum(seen.counts().values())
    many = "1 message" if count == 1 else f"{count:,} messages"
    say(
        "busy",
        f"{many} could not be used so far, the last {_ago(now - newest.written)} ago ({newest.reject_class}).",
        "/letters",
    )


def _ago(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def groups(lags: list[PartitionLag]) -> list[Json]:
    """A line for each group."""
    return [
        {
            "group": name,
            "topics": sorted({one.topic for one in each if one.committed is not None or one.backlog is not None}),
            "partitions": sum(one.committed is not None or one.backlog is not None for one in each),
            "lag": total([one.lag for one in each if one.committed is not None]),
            "waiting": total([one.waiting for one in each if one.committed is not None]),
            "backlog": sum(one.backlog or 0 for one in each),
            "uncommitted": sum(one.backlog is not None for one in each),
            "seconds": most([one.seconds for one in each]),
            "rate_in": total([one.rate_in for one in each]),
            "rate_out": total([one.rate_out for one in each if one.committed is not None]),
            "catch_up_s": most([one.catch_up_s for one in each if one.waiting]),
            "stuck": any(one.waiting and one.catch_up_s is None for one in each),
            "members": each[0].members,
            "expired": sum(one.expired for one in each),
            "verdict": worst([one.verdict for one in each]),
            "why": next((one.why for one in each if one.verdict == worst([two.verdict for two in each])), ""),
        }
        for name, each in of_group(lags).items()
    ]


def lag(seen: Seen) -> Json:
    """Every partition of every group; null while Kafka cannot be asked."""
    kafka = seen.kafka
    return {
        "ts": None if kafka.look is None else kafka.look.ts,
        "trouble": kafka.trouble,
        "groups": None if kafka.lags is None else groups(kafka.lags),
        "partitions": None if kafka.lags is None else [asdict(each) for each in kafka.lags],
    }


def devices(seen: Seen) -> list[Json]:
    """Devices that have shown statistics, drifted, or had a faulty sensor; faults: those that are not over."""
    with seen.lock:
        known = {
            name: {"windows": len(each.ends), "last": each.ends[-1] if each.ends else None}
            for name, each in seen.devices.items()
        }
    found: dict[str, Json] = {
        name: {"device": name, **each, "drifts": 0, "faults": 0, "last_drift": None} for name, each in known.items()
    }
    for each in seen.events(DriftDetected, QualityDegraded):
        event = each.envelope.event
        if not isinstance(event, DriftDetected | QualityDegraded):
            continue
        blank = {"device": event.device, "windows": 0, "last": None, "drifts": 0, "faults": 0, "last_drift": None}
        entry = found.setdefault(event.device, blank)
        if isinstance(event, DriftDetected):
            entry["drifts"] += 1
            entry["last_drift"] = event.ts
    for fault in open_faults(seen):
        found[fault.device]["faults"] += 1
    return sorted(found.values(), key=lambda entry: (-(entry["last_drift"] or 0), entry["device"]))


def device(seen: Seen, name: str) -> Json:
    """One device's statistics over event time, and its drifts and faults."""
    events = [event_json(each) for each in seen.events(DriftDetected, QualityDegraded) if _device_of(each) == name]
    with seen.lock:
        known = seen.devices.get(name)
        return {
            "device": name,
            "statistics": [] if known is None else known.statistics,
            "ends": [] if known is None else list(known.ends),
            "values": [] if known is None else list(known.values),
            "activities": [] if known is None else list(known.activities),
            "drifts": [each for each in events if each["topic"] == "drift" and "feature" in each["data"]],
            "faults": [each for each in events if "fault" in each["data"]],
        }


def _device_of(logged: Logged) -> str | None:
    return getattr(logged.envelope.event, "device", None)


def models(seen: Seen, settings: Settings) -> Json:
    """Versions, newest first, with their candidates and deployments; and the trainings that made none."""
    events = seen.events()
    deployed: dict[str, list[Json]] = {}
    for each in events:
        if isinstance(each.envelope.event, ModelDeployed):
            deployed.setdefault(each.envelope.event.version, []).append(event_json(each))
    champion = seen.current.version if seen.current else None
    uri = _mlflow(settings)
    versions = [
        {
            **event_json(each),
            "deployments": deployed.get(each.envelope.event.version, []),
            "serves": each.envelope.event.version == champion,
            "mlflow": uri and f"{uri.rstrip('/')}/#/models/{settings.model}/versions/{each.envelope.event.version}",
        }
        for each in reversed(events)
        if isinstance(each.envelope.event, ModelRegistered)
    ]
    decisions = [event_json(each) for each in reversed(events) if isinstance(each.envelope.event, DecisionMade)]
    return {"champion": champion, "versions": versions, "decisions": decisions[:100], "mlflow": uri}


def events(seen: Seen, *, topic: str | None, text: str, limit: int) -> list[Json]:
    """Events, newest first; those whose sentence or id holds a text."""
    found = []
    for each in reversed(seen.events()):
        if topic is not None and each.topic.name != topic:
            continue
        told = event_json(each)
        if text.lower() in f"{told['says']} {told['id']} {told['subject']}".lower():
            found.append(told)
            if len(found) >= limit:
                break
    return found


def chain(known: Chain, logged: Logged) -> Json:
    """An event with all that is connected with it; causes: also of which switch it was the occasion."""
    around = known.around(logged)

    def linked(each: Logged) -> Json:
        told = event_json(each)
        causes = [*told["causes"], *(cause.envelope.id for cause in known.causes_of(each))]
        return {**told, "causes": list(dict.fromkeys(causes))}

    return {
        "event": linked(logged),
        "before": [linked(each) for each in around.before],
        "after": [linked(each) for each in around.after],
        "episode": [event_json(each) for each in known.episode(logged)],
    }


def letter_json(letter: Letter) -> Json:
    """A dead letter, safe to look at."""
    return {
        "name": letter.name,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "written": letter.written,
        "class": letter.reject_class,
        "reason": letter.reason,
        "source": letter.source,
        "source_partition": letter.source_partition,
        "source_offset": letter.source_offset,
        "replay_of": letter.replay_of,
        "key": shown(letter.key, 256),
        "value": shown(letter.value),
        "bytes": letter.size,
        "headers": [[name[:100], shown(content, 256)] for name, content in letter.headers[:20]],
    }


def letters(seen: Seen, *, topic: str | None, reject_class: str | None, limit: int) -> Json:
    """Counts by topic and class, and the last letters, newest first."""
    chosen = [
        letter_json(each)
        for each in seen.last_letters()
        if topic in (None, each.topic) and reject_class in (None, each.reject_class)
    ]
    counts = [{"topic": name, "class": reject, "count": count} for (name, reject), count in seen.counts().items()]
    return {"counts": sorted(counts, key=lambda each: -each["count"]), "letters": chosen[:limit]}
