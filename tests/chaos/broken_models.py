"""Versions that do not work, before and after the switch: `python -m tests.chaos.broken_models`.

A champion serves; each version after it breaks in one way, either from its first request on, so that its smoke test has
to stop it, or after it was switched to, so that the watch has to. A client asks the router all the while.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from deploy import modelfiles
from deploy.process import ProcessTarget
from deploy.router import Router
from deploy.target import DeploymentSpec
from schemas.topology import DEPLOYED
from streams.current_model import CurrentModel
from tests.bench.report import Measurement, parser, show
from tests.chaos.rollouts import Client, announce, decided, world
from tests.integration import worker_processes as workers
from tests.places import ROOT, running
from workers import registry
from workers.deploy import Deployer
from workers.health import Health

KINDS = ("raises", "wrong-shape", "garbage", "slow", "out-of-memory")
AFTER_SMOKE = 21  # the smoke test asks 20 times
SERVE = """
import dataclasses, os, resource, sys, time
from pathlib import Path
from deploy.serving import create_app, listen, served
from workers.serve import featurise

name, version, digest, folder, port, kind, after = sys.argv[1:]
model = served(name, version, digest, Path(folder))


class Broken:
    def __init__(self, pipeline):
        self.pipeline, self.classes_, self.asked = pipeline, pipeline.classes_, 0

    def predict(self, rows):
        self.asked += 1
        if kind == "none" or self.asked <= int(after):
            return self.pipeline.predict(rows)
        if kind == "raises":
            raise RuntimeError("broken")
        if kind == "slow":
            time.sleep(60)
        if kind == "out-of-memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
            try:
                bytearray(2**33)
            except MemoryError:
                os._exit(1)
        answers = self.pipeline.predict(rows)
        return answers[:-1] if kind == "wrong-shape" else ["?" for _ in answers]

    predict_proba = predict


listen(create_app(dataclasses.replace(model, pipeline=Broken(model.pipeline)), featurise), "127.0.0.1", int(port))
"""


def measure(folder: Path, kinds: list[str], rounds: int, addresses: dict[str, str] | None = None) -> Measurement:
    """Each kind so many times, once stopped by the smoke test and once by the watch."""
    os.environ["PYTHONPATH"] = str(ROOT)
    broken: dict[str, tuple[str, int]] = {}

    def command(spec: DeploymentSpec, port: int) -> list[str]:
        kind, after = broken.get(spec.version, ("none", 0))
        said = [spec.model, spec.version, spec.digest, str(spec.folder), str(port), kind, str(after)]
        return [sys.executable, "-c", SERVE, *said]

    rows: list[dict[str, object]] = []
    with ExitStack() as left:
        settings = left.enter_context(world(folder, addresses, bake_seconds=600, slow_ms=400))
        target = ProcessTarget(settings.home, command, stop_seconds=5)
        left.callback(lambda: [target.delete(each) for each in target.list(settings.model)])
        router, address = left.enter_context(running(Router(folder / "route.json")))
        current = CurrentModel(
            settings, lambda event: router.switch(event.endpoint, event.version) if event else None
        ).start()
        left.callback(current.stop)
        handler = Deployer(settings, Health("test"), target, registry.connect(settings))
        left.enter_context(workers.loop(settings, handler))

        champion = announce(settings, 0)
        workers.eventually(lambda: current.version == champion, 120, "the champion")
        where = target.find(settings.model, champion)
        assert where is not None
        files = settings.home / "serving" / f"{settings.model}-v{champion}"
        cases = modelfiles.smoke_cases(files)
        body = json.dumps({"instances": cases.inputs[:1]})

        def serving() -> str:
            return router.route.version or ""

        asking = Client(f"{address}/invocations", body, pause=0.05, seconds=5, expected=serving)
        asked = left.enter_context(asking).answers
        number = 0
        for _ in range(rounds):
            for kind in kinds:
                for after in (0, AFTER_SMOKE):
                    number += 1
                    version = str(number + 1)
                    broken[version] = (kind, after)
                    began = len(asked)
                    assert announce(settings, number) == version
                    decision = workers.eventually(
                        lambda known=number: decided(settings, known), 120, f"a decision on version {version}, {kind}"
                    )
                    workers.eventually(lambda: current.version == champion, 60, "the champion again")
                    switched = [each for each in workers.events(settings, DEPLOYED) if each.event.version == version]
                    back = [each for each in workers.events(settings, DEPLOYED) if each.event.version == champion][-1]
                    took = (back.time - switched[-1].time).total_seconds() if switched else 0.0
                    during = asked[began:]
                    rows.append(
                        {
                            "kind": kind,
                            "breaks": "after the switch" if after else "at once",
                            "outcome": decision.outcome,
                            "reason": decision.reason,
                            "switched": len(switched),
                            "back_s": took,
                            "champion_asked": sum(each[2] == champion for each in during),
                            "champion_failed": sum(each[2] == champion and each[1] != 200 for each in during),
                            # 0: no answer within the client's 5 s
                            "failed_as": sorted({each[1] for each in during if each[2] == champion} - {200}),
                        }
                    )
    figures = {
        "versions": len(rows),
        "stopped_before_the_switch": sum(row["outcome"] == "refused" and not row["switched"] for row in rows),
        "sent_back": sum(row["outcome"] == "rolled-back" for row in rows),
        "worst_back_s": max(row["back_s"] for row in rows),
        "champion_asked": sum(row["champion_asked"] for row in rows),
        "champion_failed": sum(row["champion_failed"] for row in rows),
    }
    return Measurement("broken_models", {"kinds": kinds, "rounds": rounds}, figures, rows)


def main() -> None:
    """Break, judge, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--kinds", default=",".join(KINDS))
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    with tempfile.TemporaryDirectory() as folder:
        show(measure(Path(folder), given.kinds.split(","), given.rounds), given.json)


if __name__ == "__main__":
    main()
