"""Dead letters sent again, each at most once: the record and the receipt for it become visible in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Producer

from schemas.errors import Retry, Stop
from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_BYTES, REPLAYS
from streams.eventlog import read_records
from streams.kafka import is_transient, producer_config
from streams.letters import REPLAY_OF, Letter

_TIMEOUT_S: Final = 20.0


def replayed(settings: Settings) -> set[str]:
    """Names of the letters that were sent again. Raises Retry."""
    found = (message for message in read_records(settings, [REPLAYS]) if message is not None)
    return {(message.key() or b"").decode(errors="replace") for message in found if message.value() is not None}


def replay(
    settings: Settings,
    letters: Sequence[Letter],
    *,
    rate: float,
    progress: Callable[[int], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send letters back to the partitions that they came from, `rate` a second; how many were sent.

    A second replay that runs at the same time is fenced, and receipts are looked at once more after that, so that
    nothing is sent twice whoever runs what when. Raises Retry, or Stop if another replay has taken over.
    """
    producer = Producer(
        producer_config(
            settings,
            **{"transactional.id": f"{settings.namespace}driftloop-replay", "message.max.bytes": DEAD_LETTER_BYTES},
        )
    )
    sent = 0
    try:
        producer.init_transactions(_TIMEOUT_S)
        known = replayed(settings)
        for letter in letters:
            if letter.name in known:
                continue
            begun = time.monotonic()
            producer.begin_transaction()
            try:
                _send(settings, producer, letter)
            except BaseException:
                producer.abort_transaction(_TIMEOUT_S)
                raise
            sent += 1
            progress(sent)
            sleep(max(0.0, 1 / rate - (time.monotonic() - begun)))
    except KafkaException as error:
        cause = error.args[0]
        said = f"{sent} sent, then Kafka refused: {cause.str()}"
        raise (Retry(said) if is_transient(cause) else Stop(said)) from error
    return sent


def _send(settings: Settings, producer: Producer, letter: Letter) -> None:
    headers = [*letter.headers, (REPLAY_OF, letter.name.encode())]
    producer.produce(
        letter.source, key=letter.key, value=letter.value, partition=letter.source_partition, headers=headers
    )
    receipt = {"to": f"{letter.source}/{letter.source_partition}", "ts": time.time()}
    producer.produce(settings.topic(REPLAYS), key=letter.name, value=msgspec.json.encode(receipt))
    producer.commit_transaction(_TIMEOUT_S)
