"""docker-compose.yml runs the processes that the one-machine stack runs, with settings that exist."""

import yaml

from schemas.generate import ROOT
from schemas.settings import Settings, variable
from schemas.topology import DEAD_LETTER_BYTES
from workers.stack import PROCESSES

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_every_process_of_the_stack_is_a_service():
    """A process that the file forgets is a loop that does not close."""
    commands = {tuple(service.get("command", ())) for service in COMPOSE.values()}
    assert {("run", name) for name in PROCESSES} <= commands


def test_only_settings_that_exist_are_set():
    """A misspelt variable is ignored, and the process runs with something else."""
    known = {variable(name) for name in Settings.model_fields}
    for name in PROCESSES:
        assert set(COMPOSE[name]["environment"]) <= known


def test_the_broker_takes_what_is_dead_lettered():
    """A dead letter that the broker refuses would stop the agent."""
    environment = COMPOSE["kafka"]["environment"]
    assert int(environment["KAFKA_MESSAGE_MAX_BYTES"]) >= DEAD_LETTER_BYTES
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_no_image_names_a_registry():
    """Where images come from is the user's choice."""
    for service in COMPOSE.values():
        first, slash, _ = service["image"].partition("/")
        assert not (slash and ("." in first or ":" in first))
