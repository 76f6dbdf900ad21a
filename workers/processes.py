"""What our processes say of themselves, asked at the addresses that the stack has written down or a setting names."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import httpx

from deploy.local import programs
from schemas.settings import Settings
from schemas.topology import DEPLOY_GROUP, RETRAIN_GROUP

_SECONDS: Final = 2.0
_GROUP_OF: Final = {"retrain": RETRAIN_GROUP, "deploy": DEPLOY_GROUP}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSeen:
    """live: it answers, and its loop turns. ready: it can do its work."""

    name: str
    address: str
    live: bool
    ready: bool
    doing: str
    metrics: str = ""


def addresses(settings: Settings) -> dict[str, str]:
    """Name → address of /live, /ready and /metrics: those that DRIFTLOOP_PROCESSES names, else the stack's own."""
    if settings.processes:
        pairs = (each.partition("=") for each in settings.processes.split(","))
        return {name.strip(): address.strip().rstrip("/") for name, _, address in pairs}
    known = programs.read(settings.home.expanduser().resolve())
    return {name: each.address for name, each in known.items() if each.address and each.address.startswith("http")}


def ask(settings: Settings, *, metrics: bool = False) -> list[ProcessSeen]:
    """Every process, asked now; Kafka and MLflow are not among them."""
    found = {name: address for name, address in addresses(settings).items() if name not in ("kafka", "mlflow")}
    if not found:
        return []
    with ThreadPoolExecutor(8) as pool, httpx.Client(timeout=_SECONDS, trust_env=False) as client:
        return list(pool.map(lambda item: _one(client, *item, metrics=metrics), found.items()))


def _one(client: httpx.Client, name: str, address: str, *, metrics: bool) -> ProcessSeen:
    try:
        live, ready = client.get(f"{address}/live"), client.get(f"{address}/ready")
        said = live.json()
        text = client.get(f"{address}/metrics").text if metrics else ""
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return ProcessSeen(name=name, address=address, live=False, ready=False, doing="does not answer")
    doing = str(said.get("doing", "")) if isinstance(said, dict) else ""
    return ProcessSeen(
        name=name, address=address, live=live.is_success, ready=ready.is_success, doing=doing, metrics=text
    )


def busy(settings: Settings, seen: list[ProcessSeen]) -> Mapping[str, str]:
    """Consumer group → what its one-job-at-a-time worker is doing, where it is at work on an event."""
    return {
        f"{settings.namespace}{group}": each.doing
        for each in seen
        if (group := _GROUP_OF.get(each.name)) and each.live and each.doing not in ("", "idle", "starting")
    }
