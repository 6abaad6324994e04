"""From a cluster's resources to actors and tasks."""

from dataclasses import dataclass

import ray

from schemas.errors import RequestError

CALLS_PER_GPU_ACTOR = 2
"""Threads of an actor on a GPU: while one batch is on the GPU, another is unpacked and a third is encoded."""


@dataclass(frozen=True)
class Cluster:
    """What a cluster has at the moment.

    Attributes:
        nodes: machines, including those that offer nothing to tasks.
        cpus, gpus: slots in total.
        memory_bytes: that tasks may ask for, in total.
        node_memory_bytes: the most that a single node has of it.
    """

    nodes: int
    cpus: float
    gpus: float
    memory_bytes: float
    node_memory_bytes: float

    @classmethod
    def now(cls) -> "Cluster":
        """The cluster that this process is connected to."""
        resources = ray.cluster_resources()
        nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in resources)
        memory = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        return cls(nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0), memory)


@dataclass(frozen=True)
class Resources:
    """How the labelling actors are placed.

    Attributes:
        actors: number of actors.
        gpus_per_actor: GPUs that each reserves. At 0 it runs on the CPU and reserves one CPU slot.
        calls_per_actor: threads in each.
        task_memory_bytes: that each read task reserves.
    """

    actors: int
    gpus_per_actor: float
    calls_per_actor: int
    task_memory_bytes: float = 0.0

    @property
    def batches_in_flight(self) -> int:
        """Batches that an actor works on or holds ready, so that the next is there when one is done."""
        return 2 * self.calls_per_actor

    @property
    def placement(self) -> dict[str, float]:
        """An actor's reservation, as Ray Data's arguments."""
        # Without num_cpus Ray would add a slot to each GPU, and small nodes would have none left for reading.
        return {"num_gpus": self.gpus_per_actor, "num_cpus": 0} if self.gpus_per_actor else {"num_cpus": 1}

    def sentence(self, cluster: Cluster, batch_size: int) -> str:
        """The plan as a sentence."""
        device = f"with {self.gpus_per_actor:g} GPU each" if self.gpus_per_actor else "on the CPU"
        slots = max(0.0, cluster.cpus - (0 if self.gpus_per_actor else self.actors))
        return (
            f"Labelling actors: {self.actors} {device}, each with {self.batches_in_flight} batches of {batch_size} "
            f"in flight. Reading: one CPU slot a task, slots now: {slots:g}."
        )

    def lacking(self, cluster: Cluster) -> str | None:
        """The resource that must be added before the first image can be labelled; None if nothing is lacking."""
        if cluster.gpus < self.gpus_per_actor:
            return "a GPU"
        if cluster.node_memory_bytes < self.task_memory_bytes:
            return f"{self.task_memory_bytes / 1e9:.1f} GB of memory for decoding (--decode-memory-mb)"
        held = 0 if self.gpus_per_actor else self.actors  # all the time; reading needs one more
        return "a CPU" if cluster.cpus < held + 1 else None


def plan_resources(actors: int | None, gpus_per_actor: float | None, cluster: Cluster) -> Resources:
    """Actors on all GPUs of the cluster, or one on the CPU if it has none, unless the user asks for something else.

    Args:
        actors: number asked for. Those that do not fit wait until the cluster has grown.
        gpus_per_actor: GPUs for each; 0 for the CPU.
        cluster: what is there now.

    Raises:
        RequestError: GPUs are asked for, none is there, and ``actors`` does not say how many there will be.
    """
    if not (cluster.gpus if gpus_per_actor is None else gpus_per_actor):
        return Resources(actors or 1, 0.0, calls_per_actor=1)
    gpus_per_actor = gpus_per_actor or 1.0
    if not actors and cluster.gpus < gpus_per_actor:
        raise RequestError(
            f"--gpus-per-actor {gpus_per_actor:g} asks for more than the {cluster.gpus:g} GPUs that the cluster has "
            f"now: if it can grow, say to how many actors with --actors"
        )
    fitting = int(cluster.gpus // gpus_per_actor)
    if gpus_per_actor < 1:  # an actor's share lies on one GPU
        fitting = int(cluster.gpus) * int(1 / gpus_per_actor)
    return Resources(actors or fitting, gpus_per_actor, CALLS_PER_GPU_ACTOR)
