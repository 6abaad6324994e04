"""What changed in a corpus since its rows were made: the versions of its shards, in ``OUTPUT/_shards.arrow``.

A version is what the storage says of a file: its size and its ETag or time of modification. It is noted before the
shard is read, and its rows carry it. If the shard is replaced while it is read, the next run finds another version and
labels it again. Rows of another version than the noted one do not count (`cluster.output.resume.scan_output`).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import feather

from cluster.corpus.readers import utf8
from cluster.corpus.sources import Corpus
from cluster.output.folder import SHARDS, Output


@dataclass(frozen=True)
class Changes:
    """How a corpus differs from the one that was labelled.

    Attributes:
        new: number of shards that nothing is known of.
        changed: names of shards that have another version.
        gone: number of shards that are no longer there. Their rows stay.
    """

    new: int
    changed: frozenset[str]
    gone: int

    def __bool__(self) -> bool:
        """True if there is something to label."""
        return bool(self.new or self.changed)

    def __str__(self) -> str:
        plural = "s" * (self.new != 1)
        return f"{self.new:,} new shard{plural}, {len(self.changed):,} changed, {self.gone:,} no longer there"


def find_changes(output: Output, corpus: Corpus) -> Changes:
    """Compare a corpus with the versions that an output has noted.

    Raises:
        OSError: the storage failed.
    """
    return compare(read_versions(output), versions_of(corpus))


def note_versions(output: Output, corpus: Corpus) -> Changes | None:
    """Note the versions of all shards.

    Returns:
        What has changed; None if nothing was noted before.

    Raises:
        OSError: the storage failed.
    """
    noted, now = read_versions(output), versions_of(corpus)
    if noted != noted | now:
        write_versions(output, noted | now)
    return compare(noted, now) if noted else None


def compare(noted: Mapping[str, str], now: Mapping[str, str]) -> Changes:
    changed = {name for name in noted.keys() & now.keys() if noted[name] != now[name]}
    return Changes(len(now.keys() - noted.keys()), frozenset(changed), len(noted.keys() - now.keys()))


def versions_of(corpus: Corpus) -> dict[str, str]:
    return {utf8(shard.name): shard.version for shard in corpus.shards}


def read_versions(output: Output) -> dict[str, str]:
    """The noted versions; empty if there are none."""
    try:
        content = output.location.fs.cat_file((output.location / SHARDS).path)
    except FileNotFoundError:
        return {}
    try:
        table = feather.read_table(io.BytesIO(content))
        return dict(zip(table["shard"].to_pylist(), table["version"].to_pylist(), strict=True))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise OSError(f"{(output.location / SHARDS).url} is damaged: delete it, and all shards count as new") from error


def write_versions(output: Output, versions: Mapping[str, str]) -> None:
    buffer = io.BytesIO()
    table = pa.table({"shard": list(versions), "version": list(versions.values())})
    feather.write_feather(table, buffer, compression="zstd")
    output.write(SHARDS, buffer.getvalue())
