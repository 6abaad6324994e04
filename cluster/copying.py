"""Copying chosen pictures of a corpus into new tar shards, byte for byte, over Ray.

Every file of the corpus is read once, by one task; a task takes as many neighbouring files as fill a shard. Which
picture goes into which shard follows from the corpus and the choice alone, so that a task finds the shards that it has
finished before.
"""

import io
import re
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
from cluster.output.files import written_whole
from cluster.output.folder import file_name
from cluster.output.image_names import split_id
from cluster.session import ClusterOptions
from cluster.storage import Location

TASKS_PER_CORE = 4
"""Tasks that wait or run at a time: enough to keep the cluster busy, few enough to hold their ids in memory."""


class PicturesChangedError(Exception):
    """Pictures that were labelled cannot be read any more."""


@dataclass(frozen=True)
class CopyTask:
    """Files of the corpus, and what to take from them.

    Attributes:
        sources: each file with the ids of the pictures to take; at least one each.
        first_shard: number of the first tar shard that the task writes.
        pictures_per_shard: pictures in each but the last.
    """

    sources: tuple[tuple[Shard, frozenset[str]], ...]
    first_shard: int
    pictures_per_shard: int

    @property
    def pictures(self) -> int:
        return sum(len(wanted) for _, wanted in self.sources)

    @property
    def shards(self) -> range:
        """Numbers of the tar shards that the task writes."""
        return range(self.first_shard, self.first_shard + -(-self.pictures // self.pictures_per_shard))


def plan_copies(corpus: Corpus, chosen: Iterable[tuple[str, str]], pictures_per_shard: int) -> list[CopyTask]:
    """Tasks that copy pictures.

    Args:
        corpus: where the pictures are.
        chosen: per picture its id and its shard's name, as in the rows.
        pictures_per_shard: pictures in a tar shard, at most.

    Raises:
        PicturesChangedError: a shard is not there.
    """
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, shard_name in chosen:
        ids[shard_name].add(image_id)
    tasks: list[CopyTask] = []
    gathered: list[tuple[Shard, frozenset[str]]] = []
    pictures = first_shard = 0
    for shard in corpus.shards:
        wanted = ids.pop(utf8(shard.name), set())
        pictures += len(wanted)
        if wanted:
            gathered.append((shard, frozenset(wanted)))
        if gathered and (pictures >= pictures_per_shard or not ids):
            tasks.append(CopyTask(tuple(gathered), first_shard, pictures_per_shard))
            first_shard = tasks[-1].shards.stop
            gathered, pictures = [], 0
    if ids:
        raise PicturesChangedError(f"{min(ids)} is no longer in {corpus.root.url}")
    return tasks


def copy_pictures(
    corpus: Corpus, tasks: list[CopyTask], target: Location, address: str | None, console: Console
) -> None:
    """Run the tasks whose shards are not all there, on the cluster at ``address`` or on this machine.

    Raises:
        RequestError: there is no such cluster.
        PicturesChangedError, ray.exceptions.RayError: a task failed; finished shards stay.
    """
    done = finished_shards(target)
    left = [task for task in tasks if not done.issuperset(task.shards)]
    columns = (TextColumn("copying"), MofNCompleteColumn(), TextColumn("pictures"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=sum(task.pictures for task in left))
        if left:
            session.start(ClusterOptions(address=address))
            at_once = TASKS_PER_CORE * int(ray.cluster_resources()["CPU"])
            run = ray.remote(copy_task)
        running: list[ray.ObjectRef] = []
        for task in left:
            if len(running) >= at_once:
                running = await_one(running, progress, bar)
            running.append(run.remote(replace(corpus, shards=()), task, target))
        while running:
            running = await_one(running, progress, bar)


def await_one(running: list[ray.ObjectRef], progress: Progress, bar: TaskID) -> list[ray.ObjectRef]:
    """Wait until a task is done; returns the others."""
    (ready,), others = ray.wait(running)
    progress.advance(bar, ray.get(ready))
    return others


def finished_shards(target: Location) -> set[int]:
    """Numbers of the tar shards that are there."""
    try:
        paths = target.fs.ls(target.path, detail=False)
    except FileNotFoundError:
        return set()
    numbers = (re.fullmatch(r"(\d{6,})\.tar", file_name(path)) for path in paths)
    return {int(match[1]) for match in numbers if match}


def copy_task(corpus: Corpus, task: CopyTask, target: Location) -> int:
    """Write the task's tar shards that are not there yet.

    Returns:
        How many pictures the task has.

    Raises:
        PicturesChangedError: a picture cannot be read any more.
        OSError: the storage failed.
    """
    done = finished_shards(target)
    pictures = wanted_pictures(corpus, task)
    for number in task.shards:
        portion = islice(pictures, task.pictures_per_shard)
        if number in done:
            for _ in portion:
                continue
        else:
            with written_whole(target / f"{number:06}.tar") as file:
                write_tar(file, portion)
    return task.pictures


def wanted_pictures(corpus: Corpus, task: CopyTask) -> Iterator[Record]:
    """The task's pictures in the order in which its files hold them; a file is read up to the last one wanted."""
    for shard, wanted in task.sources:
        left = set(wanted)
        for record in read_shard(corpus, shard):
            if record.image_id not in left:
                continue
            if record.data is None:
                raise PicturesChangedError(record.error)
            left.remove(record.image_id)
            yield record
            if not left:
                break
        if left:
            raise PicturesChangedError(f"{min(left)} is no longer in {Location(corpus.root.fs, shard.path).url}")


def write_tar(file: IO[bytes], records: Iterable[Record]) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for record in records:
            assert record.data is not None, "failures are not copied"
            member = tarfile.TarInfo(member_name(record))
            member.size = len(record.data)
            archive.addfile(member, io.BytesIO(record.data))


def member_name(record: Record) -> str:
    """A picture's name in a tar shard: its id, with the picture's ending behind the only dot of its last part, as
    WebDataset wants it. A table's pictures get the ending of their format."""
    stem, ending = split_id(record.image_id)
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.replace(".", "%2E") + (ending or image_ending(record.data or b""))


def image_ending(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f".{image.format or 'image'}".lower()
