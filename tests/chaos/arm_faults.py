"""Random faults of Azure Resource Manager against the target `aci`: `python -m tests.chaos.arm_faults --scripts 200`.

Each script puts two versions into service one after the other and takes the first away, through throttling, conflicts,
errors, hanging and lost answers, groups that fail and groups that never get ready, with workers that are replaced in
between. Judged after one sweep.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy import modelfiles
from deploy.aci import AciTarget
from deploy.image.registry import Registry
from deploy.target import DeploymentSpec, Target
from schemas.errors import Reject, Retry
from tests import azure as fake
from tests.bench.report import Measurement, parser, show
from tests.places import fake_place, write_model
from workers.targets import credential

IMAGE = "127.0.0.1:1/driftloop/models@sha256:" + "0" * 64
TRIES = 40


class Images:
    """A builder that has built everything already."""

    def build(self, spec: DeploymentSpec) -> str:
        return IMAGE

    def forget(self, image: str) -> None:
        """Nothing is kept."""


def run(number: int, seed: int, specs: list[DeploymentSpec]) -> dict[str, object]:
    """One script; what the fake has seen of it."""
    rng = random.Random(f"{seed}/{number}")
    script = [rng.choice([*fake.FAULTS, ""]) for _ in range(rng.randint(2, 12))]
    began, retries = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, fake.azure(Path(folder)) as azure:
        azure.arm.faults = list(script)
        azure.arm.hang_seconds = 0.5
        target = replaced(azure)

        def insist(act: Callable[[Target], object]) -> None:
            nonlocal target, retries
            for _ in range(TRIES):
                try:
                    act(target)
                except (Retry, Reject):
                    retries += 1
                    if azure.arm.groups and rng.random() < 0.2:
                        # What a worker that died knew of a Retry-After is lost; starting takes longer than that.
                        time.sleep(azure.arm.retry_after)
                        target = replaced(azure)
                    time.sleep(0.2)
                else:
                    return
            raise RuntimeError(f"script {number} {script} came to no end")

        def keep(which: DeploymentSpec) -> Callable[[Target], None]:
            def act(at: Target) -> None:
                for other in at.list(which.model):
                    if other.version != which.version:
                        at.delete(other)

            return act

        one, two = specs
        insist(lambda at: at.create(one))
        insist(lambda at: at.create(two))
        insist(keep(two))
        puts = azure.arm.puts
        return {
            "script": " ".join(each or "ok" for each in script),
            "retries": retries,
            "puts": len(puts),
            "groups": len(azure.arm.groups),
            "most": azure.arm.most,
            "early": azure.arm.early,
            "refused": len(azure.arm.refused),
            "succeeded": sum(group.state == "Succeeded" for group in azure.arm.groups.values()),
            "seconds": time.monotonic() - began,
        }


def replaced(azure: fake.Azure) -> Target:
    """As a newly started worker has it."""
    place = fake_place(azure, operation_seconds=5.0)
    return AciTarget(place, credential(), Images(), Registry(repository="127.0.0.1:1/driftloop/models"))


def measure(scripts: int, seed: int, first: int = 0) -> Measurement:
    """So many scripts, ten at a time: they mostly wait."""
    with tempfile.TemporaryDirectory() as folder, fake.azure(Path(folder) / "identity") as identity:
        os.environ |= {name: identity.environment[name] for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")}
        specs = []
        for version in ("1", "2"):
            files = write_model(Path(folder) / version, int(version))
            specs.append(DeploymentSpec("m", version, modelfiles.digest(files), files))
        with ThreadPoolExecutor(10) as pool:
            rows = list(pool.map(lambda number: run(number, seed, specs), range(first, first + scripts)))
    figures = {
        "scripts": len(rows),
        "one_group_each": sum(row["groups"] == 1 and row["succeeded"] == 1 for row in rows),
        "most_groups_at_once": max(row["most"] for row in rows),
        "early_retries": sum(row["early"] for row in rows),
        "refused_bodies": sum(row["refused"] for row in rows),
        "orphans": sum(row["groups"] - 1 for row in rows),
    }
    return Measurement("arm_faults", {"scripts": scripts, "seed": seed}, figures, rows)


def main() -> None:
    """Run the scripts, judge, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--scripts", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    show(measure(given.scripts, given.seed), given.json)


if __name__ == "__main__":
    main()
