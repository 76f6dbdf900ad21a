"""What the monitor has measured, kept in SQLite, so that a restart shows yesterday. A gap stays a gap."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger()

STEP_S: Final = 10
COARSE_S: Final = 60
FINE_FOR_S: Final = 6 * 3600
_PRUNE_EVERY_S: Final = 600.0

_TABLES: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS points (
    series INTEGER NOT NULL, ts INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (series, ts)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class History:
    """Series of numbers by name, and a few remembered values. Trouble with the disk costs history, never the page."""

    def __init__(self, path: Path, days: float) -> None:
        self._lock = threading.Lock()
        self._days = days
        self._series: dict[str, int] = {}
        self._added = float("-inf")
        self._pruned = float("-inf")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = _open(path)
        except sqlite3.OperationalError as error:  # locked, full, not ours: the file may be sound
            log.warning("history.unreadable", path=str(path), error=str(error))
            self._connection = _open(":memory:")
        except sqlite3.DatabaseError as error:
            log.warning("history.unreadable", path=str(path), error=str(error))
            path.replace(path.with_suffix(f".broken-{int(time.time())}"))
            self._connection = _open(path)

    def add(self, ts: float, values: Mapping[str, float]) -> None:
        """Keep a point of each series, at most one in STEP_S."""
        if ts - self._added < STEP_S:
            return
        self._added = ts
        at = int(ts) // STEP_S * STEP_S
        try:
            with self._lock, self._connection as connection:
                rows = [(self._id(connection, name), at, value) for name, value in values.items()]
                connection.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", rows)
                if ts - self._pruned > _PRUNE_EVERY_S:
                    self._pruned = ts
                    self._prune(connection, ts)
        except sqlite3.Error as error:
            self._series.clear()
            log.warning("history.not-kept", error=str(error))

    def _id(self, connection: sqlite3.Connection, name: str) -> int:
        if name not in self._series:
            connection.execute("INSERT OR IGNORE INTO series (name) VALUES (?)", (name,))
            self._series[name] = connection.execute("SELECT id FROM series WHERE name = ?", (name,)).fetchone()[0]
        return self._series[name]

    def _prune(self, connection: sqlite3.Connection, now: float) -> None:
        """Drop what is too old; of what is not of today, a mean a minute is enough."""
        connection.execute("DELETE FROM points WHERE ts < ?", (now - self._days * 86400,))
        coarse = (int(now) - FINE_FOR_S) // COARSE_S * COARSE_S
        connection.execute(
            "INSERT OR REPLACE INTO points SELECT series, ts / 60 * 60, avg(value) FROM points WHERE ts < ? "
            "GROUP BY series, ts / 60",
            (coarse,),
        )
        connection.execute("DELETE FROM points WHERE ts < ? AND ts % 60 != 0", (coarse,))

    def read(self, name: str, start: float, end: float, most: int = 600) -> list[tuple[int, float | None]]:
        """(seconds since the epoch, mean) of a series, at most about `most`; None marks where nothing was known."""
        step = max(STEP_S, int((end - start) / most) // STEP_S * STEP_S)
        try:
            with self._lock:
                rows = self._connection.execute(
                    "SELECT ts / :step * :step AS at, avg(value) FROM points JOIN series ON series = id "
                    "WHERE name = :name AND ts BETWEEN :start AND :end GROUP BY at ORDER BY at",
                    {"step": step, "name": name, "start": start, "end": end},
                ).fetchall()
        except sqlite3.Error as error:
            log.warning("history.not-read", error=str(error))
            return []
        found: list[tuple[int, float | None]] = []
        widest = 3 * (step if end - start < FINE_FOR_S else max(step, COARSE_S))
        for at, value in rows:
            if found and at - found[-1][0] > widest:
                found.append((found[-1][0] + step, None))
            found.append((at, value))
        return found

    def remember(self, name: str, value: Any) -> None:
        """Keep a value of plain JSON under a name."""
        try:
            with self._lock, self._connection as connection:
                connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, json.dumps(value)))
        except sqlite3.Error as error:
            log.warning("history.not-kept", error=str(error))

    def remembered(self, name: str) -> Any:
        """The value kept under a name; None if there is none."""
        with self._lock:
            row = self._connection.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._connection.close()


def _open(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.executescript(_TABLES)
    return connection
