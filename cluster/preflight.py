"""Check every node before a job: GPU, memory, disk, weights, storage.

A check returns what it found. It raises ValueError if the job cannot run on the node; the message is for the user.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from huggingface_hub.constants import HF_HUB_CACHE
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cliper.fetch import fetch
from cliper.files import STORAGE_ERRORS, storage_problem
from cliper.loading import cuda_version, usable_gpus
from cliper.models import ClipSpec, DiffusionSpec, find_clip, find_diffusion, one_line
from cliper.timm_models import TimmSpec, find_timm
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.output.folder import PROBE
from cluster.storage import Location

NVIDIA_SMI = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class Finding:
    """The result of one check on a node.

    Attributes:
        check: name of the check.
        ok: whether the job can run on the node.
        said: what was found, or what is wrong.
    """

    check: str
    ok: bool
    said: str


@dataclass(frozen=True)
class Needs:
    """What every node must have.

    Attributes:
        clip, diffusion: pinned models.
        input_file: a file of the corpus to read; None skips the check.
        output: the job's output folder; None skips the check.
        timm: a pinned model of timm; None without.
    """

    clip: ClipSpec
    diffusion: DiffusionSpec | None
    input_file: Location | None
    output: Location | None
    timm: TimmSpec | None = None


def check_nodes(needs: Needs) -> Iterator[tuple[str, list[Finding]]]:
    """The name and findings of every node that is alive, in the order of their answers.

    A node whose GPUs are in use answers when they are free.
    """
    waiting = {}
    for node in ray.nodes():
        if node["Alive"]:
            offers = node["Resources"]
            options = {"num_cpus": 0, "num_gpus": offers.get("GPU", 0.0), "max_retries": 0}
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            check = ray.remote(check_node).options(scheduling_strategy=strategy, **options)
            waiting[check.remote(needs, offers)] = node["NodeManagerAddress"]
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        try:
            findings = ray.get(ready)
        except RayError as error:
            findings = [Finding("node", False, f"it did not answer ({type(error).__name__})")]
        yield waiting.pop(ready), findings


def check_node(needs: Needs, offers: dict[str, float]) -> list[Finding]:
    """Check the node that this runs on.

    Args:
        needs: what the node must have.
        offers: the node's resources as Ray reports them.
    """
    checks: dict[str, Callable[[], str]] = {"disk": disk}
    if offers.get("CPU") or offers.get("GPU"):  # otherwise no task and no actor runs here
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
        except ValueError as error:
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
        raise ValueError(f"a GPU does not work: {one_line(error)}") from error
    if len(found) < offered:
        why = f"the driver must be fit for CUDA {cuda_version()}" if cuda_version() else "it was built without CUDA"
        raise ValueError(f"Ray offers {offered:g} and torch can use {len(found)}: {why}")
    return f"{', '.join(found)}, driver {driver_version()}"


def driver_version() -> str:
    if shutil.which(NVIDIA_SMI[0]) is None:
        return "unknown"
    answer = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=60)
    return (answer.stdout.splitlines() or ["unknown"])[0]


def memory(offered_bytes: float) -> str:
    wanted = DEFAULT_LIMITS.decode_memory_bytes
    if offered_bytes < wanted:
        raise ValueError(
            f"Ray offers {offered_bytes / 1e9:.1f} GB to tasks and decoding an image asks for {wanted / 1e9:.1f}: "
            f"no image will be decoded here (jobs/annotate.py --decode-memory-mb)"
        )
    return f"{offered_bytes / 1e9:.0f} GB for tasks"


def disk() -> str:
    """Free space where weights are stored. The folder is created on first use."""
    folder = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists())
    return f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free for {HF_HUB_CACHE}"


def weights(needs: Needs) -> str:
    """Fetch the weights for the actors. A local folder must hold the same files as the driver's."""
    fetch(needs.clip, needs.diffusion, needs.timm)
    finders: list[tuple[Any, Callable[[str], Any]]] = [
        (needs.clip, find_clip), (needs.diffusion, find_diffusion), (needs.timm, find_timm)
    ]  # fmt: skip
    for spec, find in finders:
        if spec is not None and spec.folder is not None and find(spec.name).revision != spec.revision:
            raise ValueError(f"{spec.name!r} holds other files here than where the job starts: copy them")
    return "there"


@contextmanager
def reaching(place: Location, wanted: str) -> Iterator[None]:
    """Turn storage errors into a sentence that names the place."""
    try:
        yield
    except STORAGE_ERRORS as error:
        problem = storage_problem(error)
        raise ValueError(f"{place.url} cannot be {wanted}: {problem} (every node needs the same storage)") from error


def readable(file: Location) -> str:
    with reaching(file, "read"), file.fs.open(file.path, "rb") as opened:
        opened.read(1)
    return file.url


def writable(output: Location) -> str:
    probe = output / f"{PROBE}{uuid4().hex}"
    with reaching(output, "written to"):
        if not output.is_object_store:  # in an object store, a new folder could create a bucket
            output.fs.makedirs(output.path, exist_ok=True)
        output.fs.pipe_file(probe.path, b"")
        output.fs.rm_file(probe.path)
    return output.url
