"""What the monitor tells Prometheus: lag under kafka_exporter's names, and the loop's events as counts and ages."""

from __future__ import annotations

import time
from collections.abc import Iterable

from schemas import metrics as m
from schemas.events import DecisionMade, DriftDetected, ModelDeployed, ModelRegistered, QualityDegraded
from schemas.metrics import Metric, Samples
from streams.eventlog import Logged
from streams.lag import WORST_FIRST, PartitionLag
from workers.seen import Kafka, Seen

Table = dict[Metric, dict[tuple[str, ...], float]]


def samples(seen: Seen, now: float | None = None) -> Samples:
    """Everything that is known now; what is not known has no sample."""
    now = time.time() if now is None else now
    table: Table = {m.BROKER_UP: {(): float(seen.kafka.trouble is None)}}
    _of_cluster(table, seen.kafka)
    for lag in seen.kafka.lags or ():
        _of_lag(table, lag)
    for each in seen.processes:
        _put(table, m.PROCESS_UP, float(each.live), each.name)
        _put(table, m.PROCESS_READY, float(each.ready), each.name)
    for (topic, reject_class), count in seen.counts().items():
        _put(table, m.DEAD_LETTERS, count, topic, reject_class)
    if seen.events_read:
        _of_events(table, seen, now)
    return table


def _put(table: Table, metric: Metric, value: float, *labels: str) -> None:
    table.setdefault(metric, {})[labels] = value


def _add(table: Table, metric: Metric, value: float, *labels: str) -> None:
    kept = table.setdefault(metric, {})
    kept[labels] = kept.get(labels, 0.0) + value


def _of_cluster(table: Table, kafka: Kafka) -> None:
    look = kafka.look
    if look is None:
        return
    _put(table, m.BROKERS, len(look.brokers))
    for id, address in look.brokers.items():
        _put(table, m.BROKER_INFO, 1, str(id), address)
    _put(table, m.LOOK_SECONDS, kafka.seconds)
    for (topic, number), seen in look.partitions.items():
        place = (topic, str(number))
        _add(table, m.TOPIC_PARTITIONS, 1, topic)
        _put(table, m.TOPIC_LEADER, seen.leader, *place)
        _put(table, m.TOPIC_LEADER_PREFERRED, float(seen.replicas[:1] == (seen.leader,)), *place)
        _put(table, m.TOPIC_REPLICAS, len(seen.replicas), *place)
        _put(table, m.TOPIC_IN_SYNC, len(seen.in_sync), *place)
        _put(table, m.TOPIC_UNDER_REPLICATED, float(len(seen.in_sync) < len(seen.replicas)), *place)
    for metric, offsets in ((m.TOPIC_END, look.ends), (m.TOPIC_START, look.starts)):
        for (topic, number), offset in offsets.items():
            _put(table, metric, offset, topic, str(number))
    for name, group in look.groups.items():
        if group.members is not None:
            _put(table, m.GROUP_MEMBERS, group.members, name)


def _of_lag(table: Table, lag: PartitionLag) -> None:
    labels = (lag.group, lag.topic, str(lag.partition))
    for metric, value in (
        (m.GROUP_OFFSET, lag.committed),
        (m.GROUP_LAG, lag.lag),
        (m.LAG_SECONDS, lag.seconds),
        (m.BACKLOG, lag.backlog),
    ):
        if value is not None:
            _put(table, metric, value, *labels)
    if lag.committed is not None and lag.lag is not None:
        _add(table, m.GROUP_OFFSET_SUM, lag.committed, lag.group, lag.topic)
        _add(table, m.GROUP_LAG_SUM, lag.lag, lag.group, lag.topic)
    _put(table, m.EXPIRED, lag.expired, *labels)
    for verdict in WORST_FIRST:
        _put(table, m.VERDICT, float(verdict == lag.verdict), *labels, verdict)


def _of_events(table: Table, seen: Seen, now: float) -> None:
    events = seen.events()
    for metric in (m.REGISTERED,):
        table[metric] = {(): 0.0}
    for logged in events:
        match logged.envelope.event:
            case DriftDetected() as event:
                _add(table, m.DRIFTS, 1, event.feature, event.statistic, event.severity)
            case QualityDegraded() as event:
                _add(table, m.FAULTS, float(not event.ended), event.fault)
            case DecisionMade() as event:
                _add(table, m.DECISIONS, 1, event.about, event.outcome, event.reason)
            case ModelRegistered() as event:
                _add(table, m.REGISTERED, 1)
                table[m.TRAINING_SECONDS], table[m.CANDIDATE_SCORE] = {}, {}
                for candidate in event.candidates:
                    _put(table, m.TRAINING_SECONDS, candidate.fit_seconds, candidate.name)
                    for on, score in (("recent", candidate.recent), ("anchor", candidate.anchor)):
                        if score is not None:
                            _put(table, m.CANDIDATE_SCORE, score, candidate.name, on)
            case ModelDeployed() as event:
                _add(table, m.DEPLOYMENTS, 1, event.target, event.reason)
                _put(table, m.CHAMPION_SINCE, logged.written, event.model)
                _of_way(table, seen, logged)
    if seen.current is not None and seen.current.version.isdigit():
        _put(table, m.CHAMPION, float(seen.current.version), seen.current.model)
    _put(table, m.UNANSWERED, _unanswered(seen, events, now))


def _of_way(table: Table, seen: Seen, deployed: Logged) -> None:
    drifts = [
        each.written for each in seen.chain.around(deployed).before if isinstance(each.envelope.event, DriftDetected)
    ]
    if drifts:
        _put(table, m.DRIFT_TO_DEPLOYED, deployed.written - min(drifts))


def _unanswered(seen: Seen, events: Iterable[Logged], now: float) -> float:
    """Age of the oldest drift that no event answers; an answer to any drift of its episode is one to all."""
    waiting: dict[str, float] = {}
    answered = set()
    for each in events:
        event = each.envelope.event
        if isinstance(event, DriftDetected):
            waiting.setdefault(event.episode, each.written)
            if seen.chain.effects_of(each):
                answered.add(event.episode)
    return max((now - since for episode, since in waiting.items() if episode not in answered), default=0.0)
