"""From a cluster's resources to actors."""

import pytest

from cluster.sizing import Cluster, Resources, plan_resources
from schemas.errors import RequestError

CPUS = Cluster(nodes=2, cpus=16, gpus=0, memory_bytes=1e10, node_memory_bytes=4e9)
GPUS = Cluster(nodes=3, cpus=16, gpus=3, memory_bytes=1e10, node_memory_bytes=4e9)
EMPTY = Cluster(nodes=1, cpus=0, gpus=0, memory_bytes=1e9, node_memory_bytes=1e9)


@pytest.mark.parametrize(
    ("actors", "gpus_per_actor", "cluster", "expected"),
    [
        (None, None, CPUS, Resources(1, 0.0, 1)),
        (4, None, CPUS, Resources(4, 0.0, 1)),
        (None, None, GPUS, Resources(3, 1.0, 2)),
        (None, 0.5, GPUS, Resources(6, 0.5, 2)),
        (None, 0.4, GPUS, Resources(6, 0.4, 2)),
        (None, 0.2, Cluster(1, 8, 6, 1e10, 4e9), Resources(30, 0.2, 2)),
        (None, 2.0, GPUS, Resources(1, 2.0, 2)),
        (2, None, GPUS, Resources(2, 1.0, 2)),
        (None, 0.0, GPUS, Resources(1, 0.0, 1)),
        (8, 1.0, EMPTY, Resources(8, 1.0, 2)),
        (8, 1.0, GPUS, Resources(8, 1.0, 2)),
    ],
)
def test_actors_fill_the_gpus_unless_told_otherwise(
    actors: int | None, gpus_per_actor: float | None, cluster: Cluster, expected: Resources
) -> None:
    assert plan_resources(actors, gpus_per_actor, cluster) == expected


@pytest.mark.parametrize(("gpus_per_actor", "cluster"), [(1.0, EMPTY), (1.0, CPUS), (4.0, GPUS)])
def test_gpus_to_come_need_a_number_of_actors(gpus_per_actor: float, cluster: Cluster) -> None:
    with pytest.raises(RequestError, match="say to how many actors with --actors"):
        plan_resources(None, gpus_per_actor, cluster)


@pytest.mark.parametrize(
    ("resources", "cluster", "expected"),
    [
        (Resources(8, 1.0, 2), EMPTY, "a GPU"),
        (Resources(8, 1.0, 2), CPUS, "a GPU"),
        (Resources(8, 1.0, 2), GPUS, None),
        (Resources(8, 4.0, 2), GPUS, "a GPU"),
        (Resources(1, 0.0, 1), EMPTY, "a CPU"),
        (Resources(15, 0.0, 1), CPUS, None),
        (Resources(16, 0.0, 1), CPUS, "a CPU"),
        (Resources(1, 0.0, 1, 4e9), CPUS, None),
        (Resources(1, 0.0, 1, 4.1e9), CPUS, "4.1 GB of memory for decoding (--decode-memory-mb)"),
    ],
)
def test_what_is_lacking_is_named(resources: Resources, cluster: Cluster, expected: str | None) -> None:
    assert resources.lacking(cluster) == expected


def test_an_actor_reserves_gpus_or_a_cpu() -> None:
    assert Resources(1, 0.5, 2).placement == {"num_gpus": 0.5, "num_cpus": 0}
    assert Resources(1, 0.0, 1).placement == {"num_cpus": 1}


def test_the_plan_in_words() -> None:
    words = Resources(8, 0.5, 2).sentence(GPUS, batch_size=16)
    assert "actors: 8 with 0.5 GPU each, each with 4 batches of 16 in flight" in words
    assert words.endswith("slots now: 16.")
    assert Resources(1, 0.0, 1).sentence(EMPTY, 8).endswith("slots now: 0.")
