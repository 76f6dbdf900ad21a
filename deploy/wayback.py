"""What has been in service, and what follows from it: where to go back to, what is too old, which images may go.

Pure: the `deployed` topic's events in, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.events import ModelDeployed


def in_force(history: Sequence[ModelDeployed]) -> list[ModelDeployed]:
    """The deployments that were not undone, oldest first; the last one serves.

    Going back undoes what was put into service since; a version that was left is not gone back to.
    """
    kept: list[ModelDeployed] = []
    for deployed in history:
        if deployed.reason == "rollback":
            while kept and kept[-1].version != deployed.version:
                kept.pop()
            if kept:
                kept.pop()
        kept = [each for each in kept if each.version != deployed.version]
        kept.append(deployed)
    return kept


def way_back(history: Sequence[ModelDeployed]) -> ModelDeployed | None:
    """The last version that was deployed before the one that serves, not counting versions that were left."""
    kept = in_force(history)
    return kept[-2] if len(kept) > 1 else None


def newest(history: Sequence[ModelDeployed]) -> int:
    """The highest version that was ever in service, also of those that were left again; 0 before the first."""
    return max((int(each.version) for each in history), default=0)


def dispensable_images(history: Sequence[ModelDeployed], *, keep: int = 1) -> list[str]:
    """Images that neither what serves nor the way back needs, nor the `keep` deployments before them; oldest first."""
    needed = {each.image for each in in_force(history)[-2 - keep :]}
    return [
        image for image in dict.fromkeys(each.image for each in history) if image is not None and image not in needed
    ]
