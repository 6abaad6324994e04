"""Histories: a corpus that grows and changes, and drivers that die at any change of the storage.

Listing, change detection, resume, commit, recovery and finishing are the product's own. Labelling is not: a driver
writes rows files with the protocol of Ray Data's checkpoint, first ``NAME.pending.parquet``, then the rows, then
``NAME.parquet``. After every history a driver that lives finishes the output.
"""

import io
from collections.abc import Callable
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cluster.corpus.readers import Shard
from cluster.corpus.sources import Corpus
from cluster.output.changes import find_changes, note_versions
from cluster.output.files import file_name
from cluster.output.folder import Output
from cluster.output.resume import scan_output
from cluster.storage import Location
from schemas.manifest import Manifest
from schemas.rows import ROW_SCHEMA, Status
from tests.simulation.store import DiedError, SimulatedStore

MANIFEST = Manifest({"input": "corpus"})
NAMES = [f"{letter}.tar" for letter in "ab"]
ROWS_PER_FILE = 2
Write = Callable[["Histories", str, bytes], None]


def write_rows_then_commit(history: "Histories", name: str, rows: bytes) -> None:
    """As Ray Data does."""
    history.put(f"_checkpoint/{history.run}/{name}.pending.parquet", b"")
    history.put(f"{name}-0.parquet", rows)
    history.put(f"_checkpoint/{history.run}/{name}.parquet", b"")
    history.store.rm_file(f"/out/_checkpoint/{history.run}/{name}.pending.parquet")


class Histories(RuleBasedStateMachine):
    """Attributes:
    corpus: the images of each shard, and the version that they have.
    labelled: the same of shards that were labelled and not replaced since; they may be gone.
    """

    write: Write = staticmethod(write_rows_then_commit)  # type: ignore[assignment]

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.store = SimulatedStore(seed)
        self.output = Output(Location(self.store, "/out"))
        self.corpus: dict[str, tuple[int, int]] = {}
        self.labelled: dict[str, tuple[int, int]] = {}
        self.versions, self.runs = count(), count()
        self.run = ""

    @rule(name=st.sampled_from(NAMES), images=st.integers(1, 5))
    def put_shard(self, name: str, images: int) -> None:
        """A new shard, or another one in place of it."""
        self.corpus[name] = (images, next(self.versions))
        self.labelled.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def delete_shard(self, name: str) -> None:
        self.corpus.pop(name, None)

    @rule(operations=st.integers(0, 6) | st.integers(0, 40), torn=st.booleans())
    def run_that_dies(self, operations: int, torn: bool) -> None:
        """If the power fails, the last rows file that this run wrote may be empty."""
        self.store.operations_left = operations
        try:
            self.label()
        except DiedError:
            written = [path for path in self.output.data_files() if self.run and file_name(path).startswith(self.run)]
            if torn and written and not self.output.is_finished():
                self.store.tear(max(written, key=lambda path: self.store.info(path)["created"]))
        finally:
            self.store.operations_left = None

    @rule()
    def run_that_lives(self) -> None:
        self.label()
        self.check()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.label()
            self.check()
        super().teardown()

    def label(self) -> None:
        """The driver, from `jobs.annotate` and `cluster.run`."""
        self.run = ""
        corpus = self.listed()
        output = self.output
        output.check(MANIFEST, overwrite=False)
        if output.is_finished() and not find_changes(output, corpus):
            self.labelled |= self.corpus
            return
        output.begin(MANIFEST, overwrite=False)
        output.recover()
        note_versions(output, corpus)
        self.run = f"run{next(self.runs)}"
        left = scan_output(output).remaining(corpus).shards
        for number, shard in enumerate(left):
            self.label_shard(shard, number)
        output.recover()
        assert not scan_output(output).remaining(corpus).shards, "an image has no row"
        output.finish()
        self.labelled |= self.corpus

    def label_shard(self, shard: Shard, number: int) -> None:
        images, version = self.corpus[shard.name]
        rows = [self.row(shard.name, image, images, version) for image in range(images)]
        rows = [row for row in rows if row["image_id"] not in shard.done]
        for start in range(0, len(rows), ROWS_PER_FILE):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows[start : start + ROWS_PER_FILE], ROW_SCHEMA), buffer)
            type(self).write(self, f"{self.run}_{number:06}_{start:06}", buffer.getvalue())

    def put(self, name: str, content: bytes) -> None:
        self.store.pipe_file(f"/out/{name}", content)

    def listed(self) -> Corpus:
        shards = (Shard(name, f"/in/{name}", version=str(version)) for name, (_, version) in self.corpus.items())
        return Corpus(Location(self.store, "/in"), "tar", tuple(sorted(shards, key=lambda shard: shard.name)))

    def row(self, shard: str, image: int, images: int, version: int) -> dict[str, Any]:
        last = images if image == images - 1 else None
        image_id = f"{shard}/{image}.jpg"
        return {"image_id": image_id, "uri": str(version), "shard": shard, "status": Status.OK, "shard_images": last}

    def check(self) -> None:
        """Exactly one row for each image of the newest corpus.

        What is gone keeps its rows: all of them if it was labelled, and else those of one version that there were.
        """
        assert self.output.is_finished()
        files = [self.store.cat_file(path) for path in self.output.rows_files()]
        assert all(files), "a rows file that counts is empty"
        rows = [row for content in files for row in pq.read_table(io.BytesIO(content)).to_pylist()]
        found = {row["image_id"]: row["uri"] for row in rows}
        assert len(found) == len(rows), "an image has two rows"
        expected = {
            f"{shard}/{image}.jpg": str(version)
            for shard, (images, version) in (self.labelled | self.corpus).items()
            for image in range(images)
        }
        assert expected.items() <= found.items(), "an image has no row, or one of an older version"
        for row in rows:
            if row["image_id"] not in expected:
                assert row["shard"] not in self.labelled | self.corpus, "a row of an image that was never there"
        versions = {(row["shard"], row["uri"]) for row in rows}
        assert len({shard for shard, _ in versions}) == len(versions), "a shard has rows of two versions"
