"""Candidates trained elsewhere than in this process: the same models, and a lost cluster is waited for."""

import numpy as np
import pytest
from distributed import LocalCluster

from schemas.errors import Retry
from workers.training import candidates, fit_all


def trained(**where):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.array(["sit", "std", "wlk"]), 40)
    table = rng.standard_normal((120, 5)) + np.repeat(np.arange(3), 40)[:, None] * 2
    found = fit_all(
        candidates(1),
        table,
        labels,
        np.ones(120),
        seed=1,
        failed=lambda name, error: pytest.fail(f"{name}: {error}"),
        **where,
    )
    return {each.name: each.pipeline.predict_proba(table) for each in found}


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_candidates_that_are_trained_side_by_side_are_the_same_models(backend):
    """Speed must not change who wins."""
    here, there = trained(), trained(jobs=2, backend=backend)
    assert list(here) == list(there)
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_candidates_are_trained_on_a_dask_cluster_where_one_machine_is_outgrown():
    """scikit-learn's own way to scale is joblib's backend; ours is a setting."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        there = trained(backend="dask", scheduler=cluster.scheduler_address)
    for name, expected in trained().items():
        np.testing.assert_allclose(expected, there[name], atol=1e-12)


def test_a_scheduler_that_is_away_is_waited_for():
    """The world's fault, not the drift's."""
    with pytest.raises(Retry, match="scheduler"):
        trained(backend="dask", scheduler="tcp://127.0.0.1:1")
