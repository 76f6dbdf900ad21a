"""Ports of the one-machine stack: chosen free once and kept in the home, so that a restart has the same addresses."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from deploy.local import home as homes

# Below the ports that Linux (32768) and macOS (49152) hand to outgoing connections, which could take a kept one.
_FIRST, _LAST = 20_000, 32_000


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether we could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def kept(home: Path) -> dict[str, int]:
    """The ports chosen so far, by what they are for; an unreadable file is as good as none."""
    try:
        found = json.loads(_file(home).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: port for name, port in found.items() if isinstance(port, int) and 0 < port < 65536}


def choose(home: Path, names: Iterable[str], *, running: Collection[str] = ()) -> dict[str, int]:
    """A port for each name, the kept one where it is still free, and keep them all.

    running: names whose kept port we listen on ourselves.
    """
    names = list(names)
    ports = kept(home)
    for name in names:
        if name in ports and (name in running or is_free(ports[name])):
            continue
        ports[name] = next(
            port for port in random.sample(range(_FIRST, _LAST), 1000) if port not in ports.values() and is_free(port)
        )
    homes.write(_file(home), json.dumps(ports, indent=1, sort_keys=True) + "\n")
    return {name: ports[name] for name in names}


def _file(home: Path) -> Path:
    return home / "ports.json"
