"""`/live`, `/ready` and `/metrics` of a process: whether its loop turns and it can do its work, what it counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from schemas.errors import UserError
from schemas.metrics import Samples
from workers.exposition import CONTENT_TYPE, exposition

log = structlog.get_logger()

LOOP_SECONDS = 30.0


class Health:
    """The state behind the two answers; `beat` is called by the loop each time it turns."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.doing = "starting"
        self.ready: Callable[[], bool] = lambda: False
        self.samples: Callable[[], Samples] = dict
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """The loop has turned."""
        self._beaten = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since the loop last turned."""
        return time.monotonic() - self._beaten

    @property
    def live(self) -> bool:
        """Whether the loop has turned of late."""
        return self.idle_seconds < LOOP_SECONDS

    @property
    def can_work(self) -> bool:
        """Whether the process can do its work now; not, if that cannot be told while its clients come and go."""
        try:
            return self.live and self.ready()
        except Exception as error:  # noqa: BLE001 - a probe is answered, whatever the process is going through
            log.debug("health.unknown", error=repr(error))
            return False

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Answer on host:port from a thread; port 0 does not. Raises UserError if the port is taken."""
        if port == 0:
            return
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE, exposition(health.samples()))
                    return
                good = {"/live": lambda: health.live, "/ready": lambda: health.can_work}.get(self.path)
                status = 404 if good is None else 200 if good() else 503
                body = json.dumps({"process": health.name, "doing": health.doing, "ok": status == 200}).encode()
                self._answer(status, "application/json", body)

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes are no news."""

        try:
            server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UserError(f"port {port} for /live and /ready: {error.strerror}; set DRIFTLOOP_HEALTH_PORT") from error
        threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
