"""What MLflow adds to a chain: state, metrics and address of the runs that events name. Without MLflow, nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from schemas.events import ModelRegistered
from schemas.settings import Settings
from streams.eventlog import Logged


def notes(settings: Settings, events: Sequence[Logged]) -> dict[str, list[str]]:
    """Event id → lines about its run. Asked over HTTP: importing MLflow would take longer than the answer."""
    uri = settings.mlflow_tracking_uri or ""
    if not uri.startswith("http"):
        return {}
    found = {}
    with httpx.Client(base_url=uri.rstrip("/"), timeout=5, trust_env=False) as client:
        for each in events:
            event = each.envelope.event
            if isinstance(event, ModelRegistered):
                found[each.envelope.id] = _of_run(client, uri.rstrip("/"), event)
    return {id: lines for id, lines in found.items() if lines}


def _of_run(client: httpx.Client, uri: str, event: ModelRegistered) -> list[str]:
    try:
        reply = client.get("/api/2.0/mlflow/runs/get", params={"run_id": event.run_id})
        run: dict[str, Any] = reply.json()["run"]
        took = (int(run["info"]["end_time"]) - int(run["info"]["start_time"])) / 1000
        params = {each["key"]: each["value"] for each in run["data"].get("params", ())}
        address = f"{uri}/#/experiments/{run['info']['experiment_id']}/runs/{event.run_id}"
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return [f"run {event.run_id}, which MLflow does not tell of now"]
    windows = f", {params['windows.recent']} new windows" if "windows.recent" in params else ""
    return [f"run {event.run_id} {run['info']['status'].lower()}, recorded in {took:.0f} s{windows}", address]
