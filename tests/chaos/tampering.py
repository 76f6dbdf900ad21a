"""Models that somebody has tampered with, announced to a real deploy worker: `python -m tests.chaos.tampering`.

Whoever does it can write to MLflow's store; or to Kafka as well; or has even a key that is trusted. Judged by the
decision on each, and by what was started or executed, which has to be nothing.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy import modelfiles
from deploy.trust import SigningKey
from schemas.envelope import envelope
from schemas.events import ModelRegistered
from schemas.settings import Settings
from schemas.topology import MODEL_REGISTERED
from tests.bench.report import Measurement, parser, show
from tests.chaos.rollouts import announce, decided, deployed, world
from tests.integration import worker_processes as workers
from tests.tampering import TAMPERING
from workers import registry
from workers.targets import make_target

FORGED = "forged event"
KINDS = (*(kind for kind in TAMPERING if kind != "changed byte"), FORGED)
# What whoever tampers has besides MLflow's store, and why a changed model of theirs is refused.
MEANS = {"the store": "digest-mismatch", "the store and Kafka": "bad-signature", "a trusted key": "unsafe-model"}


def measure(folder: Path, rounds: int) -> Measurement:
    """Each kind so many times, by means that change from round to round."""
    rows: list[dict[str, object]] = []
    with world(folder, bake_seconds=0) as settings, ExitStack() as left:
        log = folder / "deploy.log"
        left.callback(clear, settings)
        with workers.worker(settings, "deploy", log):
            champion = announce(settings, 0)
            workers.eventually(lambda: deployed(settings) == [champion], 180, log.read_text)
            for kind, number in [(kind, number) for number in range(rounds) for kind in KINDS]:
                made = workers.registered_version(settings, f"event-{len(rows) + 1}", seed=len(rows) + 1)
                canary = folder / f"canary-{made.version}"
                means, event, expected = tampered(settings, folder, kind, number, made, canary)
                told = envelope(event, id=f"registered-{made.version}", source="chaos", subject="", time=1.0)
                workers.send(settings, MODEL_REGISTERED, told)
                wanted = len(rows) + 1
                decision = workers.eventually(lambda n=wanted: decided(settings, n), 60, log.read_text)
                rows.append(
                    {
                        "kind": kind,
                        "means": means,
                        "outcome": decision.outcome,
                        "reason": decision.reason,
                        "as_expected": decision.reason == expected,
                        "executed": canary.exists(),
                        "started": f"{settings.model}-v{made.version} " in log.read_text(),
                    }
                )
        serving = deployed(settings)
    figures = {
        "tampered": len(rows),
        "refused": sum(row["outcome"] == "refused" for row in rows),
        "for_the_reason_expected": sum(bool(row["as_expected"]) for row in rows),
        "executed": sum(bool(row["executed"]) for row in rows),
        "started": sum(bool(row["started"]) for row in rows),
        "put_into_service": len(serving) - 1,
    }
    return Measurement("tampering", {"kinds": list(KINDS), "rounds": rounds}, figures, rows)


def tampered(
    settings: Settings, folder: Path, kind: str, number: int, made: ModelRegistered, canary: Path
) -> tuple[str, ModelRegistered, str]:
    """By what means, the event that is sent, and the reason that it must be refused for."""
    if kind == FORGED:
        strange = Ed25519PrivateKey.generate()
        forgeries: tuple[tuple[str, Callable[[], ModelRegistered], str], ...] = (
            ("no signature", lambda: msgspec.structs.replace(made, signature=None, key_id=None), "unsigned"),
            ("a key of their own", lambda: SigningKey(strange, "0123456789abcdef").signed(made), "unknown-key"),
            ("another run's name", lambda: msgspec.structs.replace(made, run_id="another"), "bad-signature"),
        )
        means, forge, expected = forgeries[number % len(forgeries)]
        return means, forge(), expected
    source = registry.connect(settings).get_model_version(settings.model, made.version).source
    (stored,) = [path for path in (folder / "stack").rglob(source.rpartition("/")[2]) if path.is_dir()]
    files = next(stored.rglob("MLmodel")).parent
    TAMPERING[kind](files, canary)
    means = list(MEANS)[number % len(MEANS)]
    event = made if means == "the store" else msgspec.structs.replace(made, digest=modelfiles.digest(files))
    if means == "a trusted key":
        event = registry.signing_key(settings).signed(event)
    return means, event, MEANS[means]


def clear(settings: Settings) -> None:
    """No server is left behind."""
    place = make_target(settings)
    for each in place.list(settings.model):
        place.delete(each)


def main() -> None:
    """Tamper, judge, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), given.rounds), given.json)


if __name__ == "__main__":
    main()
