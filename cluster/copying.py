"""Copy chosen images of a corpus into new tar shards, byte for byte, on Ray.

Each file of the corpus is read once, by one task. A task takes as many neighbouring files as fill a shard. The corpus
and the choice alone determine the shard of an image. A task that runs again therefore skips the shards that exist.
"""

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO

import ray
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from cluster import session
from cluster.corpus.readers import Record, Shard, utf8
from cluster.corpus.sources import Corpus, read_shard
from cluster.options import ClusterOptions
from cluster.output.files import atomic_write, file_name, split_id
from cluster.output.folder import Output
from schemas.errors import JobFailedError

SHARD_PATTERN = r"\d{6,}\.tar"
TASKS_PER_CORE = 4
"""Tasks that wait or run at a time: enough to keep the cluster busy, few enough to hold their ids in memory."""


@dataclass(frozen=True)
class CopyTask:
    """Files of the corpus, and what to take from them.

    Attributes:
        sources: each file with the ids of the images to take, at least one.
        first_shard: number of the first tar shard that the task writes.
        images_per_shard: number of images in each shard except the last.
    """

    sources: tuple[tuple[Shard, frozenset[str]], ...]
    first_shard: int
    images_per_shard: int

    @property
    def images(self) -> int:
        return sum(len(wanted) for _, wanted in self.sources)

    @property
    def shards(self) -> range:
        """Numbers of the tar shards that the task writes."""
        return range(self.first_shard, self.first_shard + -(-self.images // self.images_per_shard))


def plan_copies(corpus: Corpus, chosen: Iterable[tuple[str, str]], images_per_shard: int) -> list[CopyTask]:
    """Divide the copying into tasks.

    Args:
        corpus: where the images are.
        chosen: id and shard name of each image, as in the rows.
        images_per_shard: maximum number of images in a tar shard.

    Raises:
        JobFailedError: a shard no longer exists.
    """
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, shard_name in chosen:
        ids[shard_name].add(image_id)
    tasks: list[CopyTask] = []
    gathered: list[tuple[Shard, frozenset[str]]] = []
    images = first_shard = 0
    for shard in corpus.shards:
        wanted = ids.pop(utf8(shard.name), set())
        images += len(wanted)
        if wanted:
            gathered.append((shard, frozenset(wanted)))
        if gathered and (images >= images_per_shard or not ids):
            tasks.append(CopyTask(tuple(gathered), first_shard, images_per_shard))
            first_shard = tasks[-1].shards.stop
            gathered, images = [], 0
    if ids:
        raise JobFailedError(f"{min(ids)} is no longer in {corpus.root.url}")
    return tasks


def copy_images(corpus: Corpus, tasks: list[CopyTask], output: Output, address: str | None, console: Console) -> None:
    """Run the tasks with missing shards, on the cluster at ``address`` or on this machine.

    Raises:
        RequestError: there is no such cluster.
        ray.exceptions.RayError: a task failed. Finished shards stay.
    """
    done = finished_shards(output)
    left = [task for task in tasks if not done.issuperset(task.shards)]
    columns = (TextColumn("copying"), MofNCompleteColumn(), TextColumn("images"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=sum(task.images for task in left))
        if left:
            session.start(ClusterOptions(address=address))
            max_running = TASKS_PER_CORE * int(ray.cluster_resources()["CPU"])
            run = ray.remote(copy_task)
        running: list[ray.ObjectRef] = []
        for task in left:
            if len(running) >= max_running:
                running = await_one(running, progress, bar)
            running.append(run.remote(replace(corpus, shards=()), task, output))
        while running:
            running = await_one(running, progress, bar)


def await_one(running: list[ray.ObjectRef], progress: Progress, bar: TaskID) -> list[ray.ObjectRef]:
    """Wait until a task is done. Returns the others."""
    (ready,), others = ray.wait(running)
    progress.advance(bar, ray.get(ready))
    return others


def finished_shards(output: Output) -> set[int]:
    """Numbers of the tar shards that exist."""
    return {int(file_name(path).removesuffix(".tar")) for path in output.data_files()}


def copy_task(corpus: Corpus, task: CopyTask, output: Output) -> int:
    """Write the missing tar shards of a task.

    Returns:
        Number of images of the task.

    Raises:
        JobFailedError: an image can no longer be read.
        OSError: the storage failed.
    """
    done = finished_shards(output)
    images = wanted_images(corpus, task)
    for number in task.shards:
        shard_images = islice(images, task.images_per_shard)
        if number in done:
            for _ in shard_images:
                continue
        else:
            with atomic_write(output.location / f"{number:06}.tar") as file:
                write_tar(file, shard_images)
    return task.images


def wanted_images(corpus: Corpus, task: CopyTask) -> Iterator[Record]:
    """Yield the images of a task in the order of its files. Each file is read up to its last wanted image."""
    for shard, wanted in task.sources:
        left = set(wanted)
        for record in read_shard(corpus, shard):
            if record.image_id not in left:
                continue
            if record.data is None:
                raise JobFailedError(record.error)
            left.remove(record.image_id)
            yield record
            if not left:
                break
        if left:
            raise JobFailedError(f"{min(left)} is no longer in {replace(corpus.root, path=shard.path).url}")


def write_tar(file: IO[bytes], records: Iterable[Record]) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for record in records:
            assert record.data is not None, "failures are not copied"
            member = tarfile.TarInfo(member_name(record))
            member.size = len(record.data)
            archive.addfile(member, io.BytesIO(record.data))


def member_name(record: Record) -> str:
    """The name of an image in a tar shard: its id, with the extension after the only dot of the last part.
    WebDataset requires that. Images from tables get the extension of their format."""
    stem, extension = split_id(record.image_id)
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.replace(".", "%2E") + (extension or image_extension(record.data or b""))


def image_extension(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f".{image.format or 'image'}".lower()
