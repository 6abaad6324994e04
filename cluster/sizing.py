"""From a cluster's resources to actors and tasks."""

from dataclasses import dataclass

import ray

from schemas.errors import RequestError

CALLS_PER_GPU_ACTOR = 2
"""Threads of an actor on a GPU: while it works on one batch, the CPU prepares the next and encodes the one before."""


@dataclass(frozen=True)
class Cluster:
    """What a cluster has at the moment.

    Attributes:
        nodes: machines, those included that offer nothing to tasks.
        cpus, gpus: in all.
        memory_bytes: that tasks may ask for.
    """

    nodes: int
    cpus: float
    gpus: float
    memory_bytes: float

    @classmethod
    def now(cls) -> "Cluster":
        """The cluster that this process is connected to."""
        resources = ray.cluster_resources()
        nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in resources)
        return cls(nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0))


@dataclass(frozen=True)
class Resources:
    """How the annotating actors are placed.

    Attributes:
        actors: number of actors.
        gpus_per_actor: GPUs that each reserves; 0 runs on the CPU, and then it reserves one CPU slot.
        calls_per_actor: threads in each.
    """

    actors: int
    gpus_per_actor: float
    calls_per_actor: int

    @property
    def batches_in_flight(self) -> int:
        """Batches that an actor has, being worked on or waiting: the next is there when one is done."""
        return 2 * self.calls_per_actor

    @property
    def placement(self) -> dict[str, float]:
        """An actor's reservation, as Ray Data's arguments."""
        return {"num_gpus": self.gpus_per_actor} if self.gpus_per_actor else {"num_cpus": 1}

    def sentence(self, cluster: Cluster, batch_size: int) -> str:
        """The plan in words."""
        device = f"with {self.gpus_per_actor:g} GPU each" if self.gpus_per_actor else "on the CPU"
        slots = max(0.0, cluster.cpus - (0 if self.gpus_per_actor else self.actors))
        return (
            f"Labelling actors: {self.actors} {device}, each with {self.batches_in_flight} batches of {batch_size} "
            f"in flight. Reading and decoding: one CPU slot a task, slots now: {slots:g}."
        )

    def lacking(self, cluster: Cluster) -> str | None:
        """What the cluster must get before the first picture can be labelled, if it lacks something."""
        if cluster.gpus < self.gpus_per_actor:
            return "GPU"
        held = 0 if self.gpus_per_actor else self.actors  # for good; reading needs a slot besides
        return "CPU" if cluster.cpus < held + 1 else None


def plan_resources(actors: int | None, gpus_per_actor: float | None, cluster: Cluster) -> Resources:
    """Actors on all GPUs of the cluster if it has any, else one on the CPU, unless something else is asked for.

    Args:
        actors: number asked for. More than fit wait until the cluster has grown.
        gpus_per_actor: GPUs for each; 0 for the CPU.
        cluster: what is there now.

    Raises:
        RequestError: GPUs are asked for and none is there, so that nothing tells how many there will be.
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
    if gpus_per_actor < 1:  # no actor has its part on two GPUs
        fitting = int(cluster.gpus) * int(1 / gpus_per_actor)
    return Resources(actors or fitting, gpus_per_actor, CALLS_PER_GPU_ACTOR)
