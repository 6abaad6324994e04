"""Copy chosen images of a corpus, byte for byte, with what is beside them and their labels, on Ray.

The copies are tar shards, or files below ``images/`` in as many parts; a part that is done has a file in ``_copied/``.
Each file of the corpus is read once, by one task. A task takes as many neighbouring files as fill a shard. The corpus
and the choice alone determine the shard of an image. A task that runs again therefore skips the shards that exist.

`cluster.samples` writes what belongs to an image.
"""

import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from cluster import session
from cluster.corpus.readers import Shard, utf8
from cluster.corpus.sources import Corpus, read_shard
from cluster.options import ClusterOptions
from cluster.output.files import atomic_write, file_name
from cluster.output.folder import Output
from cluster.output.rows import map_rows_files
from cluster.samples import LABEL_COLUMNS, LabelForm, Sample, add_member, label_file, write_file, write_samples
from cluster.storage import Location
from schemas.errors import JobFailedError

CopyForm = Literal["tar", "folder"]
IMAGES = "images"
TASKS_PER_CORE = 4
"""Tasks that wait or run at a time: enough to keep the cluster busy, few enough to hold their ids in memory."""


@dataclass(frozen=True)
class Source:
    """A file of the corpus, and what to take from it.

    Attributes:
        shard: the file.
        wanted: ids of the images to take, at least one.
        rows_files: paths of the rows files with their labels.
    """

    shard: Shard
    wanted: frozenset[str]
    rows_files: tuple[str, ...]


@dataclass(frozen=True)
class CopyTask:
    """Files of the corpus that one task copies from.

    Attributes:
        sources: the files.
        first_shard: number of the first shard that the task writes.
        images_per_shard: number of images in each shard except the last.
    """

    sources: tuple[Source, ...]
    first_shard: int
    images_per_shard: int

    @property
    def images(self) -> int:
        return sum(len(source.wanted) for source in self.sources)

    @property
    def shards(self) -> range:
        """Numbers of the shards that the task writes."""
        return range(self.first_shard, self.first_shard + -(-self.images // self.images_per_shard))


@dataclass(frozen=True)
class Copy:
    """What is written, and where.

    Attributes:
        output: where.
        form: tar shards or files.
        labels: how the labels are written beside the images.
        rows: the output with the labels.
        class_names: of the labels, in vocabulary order.
    """

    output: Output
    form: CopyForm
    labels: LabelForm
    rows: Output
    class_names: Sequence[str]


def copy_output(location: Location, form: CopyForm) -> Output:
    """The output folder of copies. Its data files are the shards, or what says that a part of the files is done."""
    if form == "tar":
        return Output(location, "", r"\d{6,}\.tar")
    return Output(location, "_copied", r"\d{6,}", (IMAGES,))


def rows_files_by_shard(rows: Output) -> dict[str, set[str]]:
    """Paths of the rows files that have rows of each shard."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, shards in map_rows_files(rows, ["shard"], lambda table: table["shard"].unique().to_pylist()):
        for shard in shards:
            found[shard].add(path)
    return found


def plan_copies(
    corpus: Corpus, chosen: Iterable[tuple[str, str]], images_per_shard: int, rows_files: Mapping[str, Iterable[str]]
) -> list[CopyTask]:
    """Divide the copying into tasks.

    Args:
        corpus: where the images are.
        chosen: id and shard name of each image, as in the rows.
        images_per_shard: maximum number of images in a shard.
        rows_files: paths of the rows files with labels of each shard; empty if they are not needed.

    Raises:
        JobFailedError: a shard no longer exists.
    """
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, shard_name in chosen:
        ids[shard_name].add(image_id)
    tasks: list[CopyTask] = []
    gathered: list[Source] = []
    images = first_shard = 0
    for shard in corpus.shards:
        wanted = ids.pop(utf8(shard.name), set())
        images += len(wanted)
        if wanted:
            files = tuple(sorted(rows_files.get(utf8(shard.name), ())))
            gathered.append(Source(shard, frozenset(wanted), files))
        if gathered and (images >= images_per_shard or not ids):
            tasks.append(CopyTask(tuple(gathered), first_shard, images_per_shard))
            first_shard = tasks[-1].shards.stop
            gathered, images = [], 0
    if ids:
        raise JobFailedError(f"{min(ids)} is no longer in {corpus.root.url}")
    return tasks


def copy_images(corpus: Corpus, tasks: list[CopyTask], copy: Copy, address: str | None, console: Console) -> None:
    """Run the tasks with missing shards, on the cluster at ``address`` or on this machine.

    Raises:
        RequestError: there is no such cluster.
        ray.exceptions.RayError: a task failed. Finished shards stay.
    """
    done = finished_shards(copy.output)
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
            running.append(run.remote(replace(corpus, shards=()), task, copy))
        while running:
            running = await_one(running, progress, bar)


def await_one(running: list[ray.ObjectRef], progress: Progress, bar: TaskID) -> list[ray.ObjectRef]:
    """Wait until a task is done. Returns the others."""
    (ready,), others = ray.wait(running)
    progress.advance(bar, ray.get(ready))
    return others


def finished_shards(output: Output) -> set[int]:
    """Numbers of the shards that exist."""
    return {int(file_name(path).removesuffix(".tar")) for path in output.data_files()}


def copy_task(corpus: Corpus, task: CopyTask, copy: Copy) -> int:
    """Write the missing shards of a task.

    Returns:
        Number of images of the task.

    Raises:
        JobFailedError: an image can no longer be read.
        OSError: the storage failed.
    """
    done, output = finished_shards(copy.output), copy.output
    images = wanted_images(corpus, task, copy)
    for number in task.shards:
        shard_images = islice(images, task.images_per_shard)
        if number in done:
            for _ in shard_images:
                continue
        elif copy.form == "tar":
            with atomic_write(output.data / f"{number:06}.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
                write_samples(shard_images, copy.labels, partial(add_member, tar))
        else:
            write_samples(shard_images, copy.labels, partial(write_file, output.location / IMAGES))
            write_file(output.data, f"{number:06}", b"")
    return task.images


def wanted_images(corpus: Corpus, task: CopyTask, copy: Copy) -> Iterator[Sample]:
    """Yield the images of a task with their labels, in the order of its files. Each file is read up to its last wanted
    image."""
    for source in task.sources:
        left = set(source.wanted)
        labels = read_labels(source, copy)
        for record in read_shard(corpus, source.shard):
            if record.image_id not in left:
                continue
            if record.data is None:
                raise JobFailedError(record.error)
            left.remove(record.image_id)
            yield record, labels.get(record.image_id)
            if not left:
                break
        if left:
            raise JobFailedError(f"{min(left)} is no longer in {replace(corpus.root, path=source.shard.path).url}")


def read_labels(source: Source, copy: Copy) -> dict[str, bytes]:
    """The labels of the wanted images of a file, as they are written beside them; empty if they are not.

    Raises:
        OSError: the storage failed.
    """
    wanted = (pc.field("shard") == utf8(source.shard.name)) & pc.field("image_id").isin(sorted(source.wanted))
    labels: dict[str, bytes] = {}
    for path in source.rows_files:
        with copy.rows.location.fs.open(path, "rb") as file:
            for row in pq.read_table(file, columns=list(LABEL_COLUMNS), filters=wanted).to_pylist():
                labels[row["image_id"]] = label_file(row, copy.labels, copy.class_names)
    return labels
