"""A real Kafka that may be killed, frozen and away: without the supervisor that would bring it back by itself."""

from __future__ import annotations

import atexit
import signal
import subprocess
import time
from pathlib import Path

from deploy.local import home as homes
from deploy.local import kafka, ports, probes


class Broker:
    """One node in a folder of its own; its address and its data outlive every restart."""

    def __init__(self, home: Path) -> None:
        self.home = home
        homes.prepare(home)
        port = ports.choose(home, ["kafka", "kafka-controller"])
        self.program = kafka.program(
            home, port=port["kafka"], controller_port=port["kafka-controller"], say=lambda _: None
        )
        self.address = f"127.0.0.1:{port['kafka']}"
        self.process: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    def start(self) -> None:
        """Begin to start it; it answers some seconds later (`answers`)."""
        with homes.log_of(self.home, "kafka").open("ab") as log:
            self.process = subprocess.Popen(
                self.program.command,
                cwd=self.program.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def answers(self, seconds: float = 120) -> float:
        """time.monotonic() once it answers."""
        deadline = time.monotonic() + seconds
        while probes.trouble(f"kafka://{self.address}", seconds=2) is not None:
            assert self.process is not None
            assert self.process.poll() is None, homes.last_trouble(homes.log_of(self.home, "kafka"))
            assert time.monotonic() < deadline, f"the broker did not answer within {seconds:g} s"
            time.sleep(0.1)
        return time.monotonic()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
