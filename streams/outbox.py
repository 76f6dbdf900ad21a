"""What the agent sends, and when Kafka has acknowledged it: an offset may be committed only after that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from schemas.errors import Stop
from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_BYTES
from streams.kafka import producer_config
from streams.records import Headers

# How long Kafka may take to acknowledge: longer than a broker's restart. After that the process ends (Stop) and its
# supervisor's next one waits for the broker and its topics, and says what is missing.
ACKNOWLEDGE_S: Final = 60.0
# How soon acknowledgements are looked for, at first and at last.
SOONEST_LOOK_S: Final = 0.001
LATEST_LOOK_S: Final = 0.02


class Outbox:
    """An idempotent producer whose acknowledgements can be waited for, from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.producer = Producer(
            producer_config(
                settings,
                **{
                    "linger.ms": 2,
                    "message.max.bytes": DEAD_LETTER_BYTES,
                    "message.timeout.ms": int(ACKNOWLEDGE_S * 1000),
                    "queue.buffering.max.kbytes": 256 * 1024,
                },
            )
        )
        self.batch = _Batch()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> None:
        """Hand a record over; it is sent soon. Raises BufferError when too much is waiting: then `acknowledged` helps.

        Raises Stop if Kafka can never take it.
        """
        where: dict[str, Any] = {} if partition is None else {"partition": partition}
        batch = self.batch
        batch.open += 1
        try:
            self.producer.produce(
                topic, key=key, value=value, headers=list(headers) if headers else None, on_delivery=batch.done, **where
            )
        except BufferError:
            batch.open -= 1
            raise
        except Exception as error:
            raise Stop(f"{topic} does not take what the agent sends: {error}") from error

    def tell(self, topic: str, key: bytes, value: bytes) -> None:
        """Hand over a record that may be lost: nobody waits for it, and it makes nobody wait."""
        with contextlib.suppress(BufferError):
            self.producer.produce(topic, key=key, value=value)

    async def acknowledged(self) -> None:
        """Return once Kafka has acknowledged everything sent before. Raises Stop if it has not in ACKNOWLEDGE_S."""
        batch, self.batch = self.batch, _Batch()
        pause = SOONEST_LOOK_S
        # Not in a thread: it would fight for the interpreter at each acknowledgement, at several times its price.
        self.producer.poll(0)
        while batch.open:  # not: until nothing comes any more, for what is sent meanwhile is acknowledged as well
            await asyncio.sleep(pause)
            pause = min(2 * pause, LATEST_LOOK_S)
            self.producer.poll(0)
        if batch.error is not None:
            raise Stop(f"Kafka has not acknowledged what the agent sent: {batch.error.str()}")

    def forget(self) -> None:
        """Drop what has not left yet: its partitions belong to another agent now."""
        self.producer.purge(in_queue=True, in_flight=False, blocking=False)


class _Batch:
    """Records sent between two waits."""

    def __init__(self) -> None:
        self.open = 0
        self.error: KafkaError | None = None

    def done(self, error: KafkaError | None, _: Message | None) -> None:
        self.open -= 1
        if error is not None and error.code() != KafkaError._PURGE_QUEUE:  # that was dropped by us: see `forget`
            self.error = self.error or error
