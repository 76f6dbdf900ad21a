"""What the agent sends, and when Kafka has acknowledged it: an offset may be committed only after that."""

from __future__ import annotations

import asyncio
import contextlib
import threading
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
        self.closed = threading.Event()
        threading.Thread(target=self._poll, name="outbox", daemon=True).start()

    def _poll(self) -> None:
        while not self.closed.is_set():
            self.producer.poll(0.5)

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
        batch.take()
        try:
            self.producer.produce(
                topic, key=key, value=value, headers=list(headers) if headers else None, on_delivery=batch.done, **where
            )
        except BufferError:
            batch.done(None, None)
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
        await batch.wait()

    def forget(self) -> None:
        """Drop what has not left yet: its partitions belong to another agent now."""
        self.producer.purge(in_queue=True, in_flight=False, blocking=False)


class _Batch:
    """Records sent between two waits. `done` is called by the polling thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 1  # itself, until it is waited for
        self.error: KafkaError | None = None
        self.waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def take(self) -> None:
        with self.lock:
            self.open += 1

    def done(self, error: KafkaError | None, _: Message | None) -> None:
        with self.lock:
            self.open -= 1
            if error is not None and error.code() != KafkaError._PURGE_QUEUE:  # that was dropped by us: see `forget`
                self.error = self.error or error
            if self.open or self.waiting is None:
                return
            loop, event = self.waiting
        loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        event = asyncio.Event()
        with self.lock:
            self.waiting = asyncio.get_running_loop(), event
        self.done(None, None)
        try:
            await event.wait()
        finally:
            with self.lock:
                self.waiting = None
        if self.error is not None:
            raise Stop(f"Kafka has not acknowledged what the agent sent: {self.error.str()}")
