"""Looking at every node before a job: GPU, memory, disk, weights, storage."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import ray
from huggingface_hub.constants import HF_HUB_CACHE
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cliper.fetch import fetch
from cliper.gpus import cuda_version, usable_gpus
from cliper.models import ClipSpec, DiffusionSpec, ModelError, find_clip, find_diffusion, one_line
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.output.folder import PROBE
from cluster.storage import STORAGE_ERRORS, Location, storage_problem

NVIDIA_SMI = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


class NotReadyError(Exception):
    """What a node lacks; the message is for the user."""


@dataclass(frozen=True)
class Finding:
    """What was found out about a node.

    Attributes:
        check: what was looked at.
        ok: whether the job can run there.
        said: what there is, or what is wrong.
    """

    check: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Needs:
    """What every node must have.

    Attributes:
        clip, diffusion: models, pinned.
        input_file: a file of the corpus; None leaves it out.
        output: where the job will write; None leaves it out.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    input_file: Location | None
    output: Location | None


def check_nodes(needs: Needs) -> Iterator[tuple[str, list[Finding]]]:
    """Every living node's name and findings, in the order in which they answer. A node whose GPUs are in use answers
    when they are free."""
    waiting = {}
    for node in ray.nodes():
        if node["Alive"]:
            offers = node["Resources"]
            options = {"num_cpus": 0, "num_gpus": offers.get("GPU", 0.0), "max_retries": 0}
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            check = ray.remote(look_at_node).options(scheduling_strategy=strategy, **options)
            waiting[check.remote(needs, offers)] = node["NodeManagerAddress"]
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        try:
            yield waiting.pop(ready), ray.get(ready)
        except RayError as error:
            yield waiting.pop(ready), [Finding("node", False, f"it did not answer ({type(error).__name__})")]


def look_at_node(needs: Needs, offers: dict[str, float]) -> list[Finding]:
    """The findings on the node that this runs on.

    Args:
        needs: what it must have.
        offers: the node's resources as Ray knows them.
    """
    checks: dict[str, Callable[[], str]] = {"disk": disk}
    if offers.get("CPU") or offers.get("GPU"):  # else no task and no actor runs here
        checks |= {
            "GPU": partial(gpu, offers.get("GPU", 0.0)),
            "memory": partial(memory, offers.get("memory", 0.0)),
            "weights": partial(weights, needs),
        }
    if needs.input_file is not None:
        checks["input"] = partial(readable, needs.input_file)
    if needs.output is not None:
        checks["output"] = partial(writable, needs.output)
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, True, check()))
        except (NotReadyError, ModelError) as error:
            findings.append(Finding(name, False, str(error)))
        except STORAGE_ERRORS as error:
            findings.append(Finding(name, False, storage_problem(error)))
    return findings


def gpu(offered: float) -> str:
    if not offered:
        return "none"
    try:
        found = usable_gpus()
    except RuntimeError as error:
        raise NotReadyError(f"a GPU does not work: {one_line(error)}") from error
    if len(found) < offered:
        why = f"the driver must be fit for CUDA {cuda_version()}" if cuda_version() else "it was built without CUDA"
        raise NotReadyError(f"Ray offers {offered:g} and torch can use {len(found)}: {why}")
    return f"{', '.join(found)}, driver {driver_version()}"


def driver_version() -> str:
    if shutil.which(NVIDIA_SMI[0]) is None:
        return "unknown"
    answer = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=60)
    return (answer.stdout.splitlines() or ["unknown"])[0]


def memory(offered_bytes: float) -> str:
    wanted = DEFAULT_LIMITS.decode_memory_mb * 10**6
    if offered_bytes < wanted:
        raise NotReadyError(
            f"Ray offers {offered_bytes / 1e9:.1f} GB to tasks and decoding a picture asks for {wanted / 1e9:.1f}: "
            f"none will be decoded here (jobs/annotate.py --decode-memory-mb)"
        )
    return f"{offered_bytes / 1e9:.0f} GB for tasks"


def disk() -> str:
    """Room where weights go; the folder is created on first use."""
    folder = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    return f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free for {HF_HUB_CACHE}"


def weights(needs: Needs) -> str:
    """Fetches them, so that actors find them; a folder must hold the same files as the driver's."""
    fetch(needs.clip, needs.diffusion)
    for spec, find in ((needs.clip, find_clip), (needs.diffusion, find_diffusion)):
        if spec is not None and spec.folder is not None and find(spec.name).revision != spec.revision:
            raise NotReadyError(f"{spec.name!r} holds other files here than where the job starts: copy them")
    return "there"


@contextmanager
def reaching(place: Location, wanted: str) -> Iterator[None]:
    """Turns storage errors into a sentence that names the place."""
    try:
        yield
    except STORAGE_ERRORS as error:
        problem = storage_problem(error)
        raise NotReadyError(f"{place.url} cannot be {wanted}: {problem} (every node needs the same storage)") from error


def readable(file: Location) -> str:
    with reaching(file, "read"), file.fs.open(file.path, "rb") as opened:
        opened.read(1)
    return file.url


def writable(output: Location) -> str:
    probe = output / f"{PROBE}{uuid4().hex}"
    with reaching(output, "written to"):
        if not output.is_object_store:  # there a new folder could mean a new bucket
            output.fs.makedirs(output.path, exist_ok=True)
        output.fs.pipe_file(probe.path, b"")
        output.fs.rm_file(probe.path)
    return output.url
