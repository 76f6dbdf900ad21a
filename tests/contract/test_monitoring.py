"""The files for Prometheus and Grafana: rules that fire when they should, boards that ask for what there is."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from schemas.generate import ROOT
from schemas.metrics import METRICS

FOLDER = ROOT / "deploy" / "monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
BOARDS = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "grafana" / "boards").glob("*.json")}
KNOWN = {each.name for each in METRICS}


def expressions():
    """(where, expression) of every rule and panel."""
    for group in RULES:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_only_metrics_that_exist_are_asked_for(where, expression):
    """An alert on a metric that nobody has never fires."""
    assert set(re.findall(r"\b(?:driftloop|kafka)_[a-z_]+", expression)) <= KNOWN


def test_every_alert_says_what_to_do():
    """At night nobody looks for the manual."""
    for group in RULES:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("warning", "critical")
                assert rule["annotations"]["do"]


def test_the_rules_fire_when_they_should(needs):
    """Prometheus' own unit tests of rules, in rules_test.yml."""
    needs(shutil.which("promtool"), "promtool")
    command = ["promtool", "test", "rules", "rules_test.yml"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (FOLDER / "rules_test.yml").read_text()
    assert [
        r["alert"] for g in RULES for r in g["rules"] if "alert" in r and f"alertname: {r['alert']}" not in tested
    ] == []


def test_prometheus_takes_its_configuration(needs):
    """A typo keeps it from starting."""
    needs(shutil.which("promtool"), "promtool")
    command = ["promtool", "check", "config", "--syntax-only", "prometheus.yml"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
