"""A SLURM cluster for all tests of a test process. Each xdist worker has its own, since the ports are free ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_rig import MISSING, SlurmCluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where SLURM is not installed."""
    if not SlurmCluster.available():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster(nodes=2, cpus=4, gpus=2, slurmd_timeout_s=5, grace_s=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """Return a cluster of two idle nodes with 4 CPUs and 2 pretended GPUs each, and no jobs but finished ones."""
    yield running_cluster
    running_cluster.reset()
