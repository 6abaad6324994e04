"""Histories: a corpus that grows and changes, drivers that die, stand still and meet each other, a storage that fails.

Lease, change detection, resume, commit, recovery and finishing are the product's own. Labelling is not: workers write
rows files with the protocol of Ray Data's checkpoint, first ``NAME.pending.parquet``, then the rows, then
``NAME.parquet``. After every history a driver that nothing disturbs finishes the output.
"""

import io
from collections.abc import Callable
from itertools import count
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from rich.console import Console

import cluster.run
from cluster.corpus.readers import Shard
from cluster.corpus.sources import Corpus
from cluster.options import ClusterOptions
from cluster.output.changes import find_changes
from cluster.output.folder import Output
from cluster.output.lease import EXPIRES_S, exclusive_run
from cluster.run import Pipeline, run_to_completion
from cluster.storage import Location
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest
from schemas.rows import ROW_SCHEMA, Status
from tests.simulation.store import SimulatedStore
from tests.simulation.world import STEP_S, Process, World

MANIFEST = Manifest({"input": "corpus"})
NAMES = [f"{letter}.tar" for letter in "ab"]
ROWS_PER_FILE = 2
LONGEST_LABELLING_S = 20.0
QUIET = Console(quiet=True)
EXPECTED = (OSError, RequestError, JobFailedError, KeyboardInterrupt)
"""How a run may end that did not succeed. The same command is given again."""
Write = Callable[["Histories", str, str, bytes], None]

names, operations = st.sampled_from(NAMES), st.integers(0, 6) | st.integers(0, 50)
pauses = st.none() | st.tuples(st.integers(0, 30), st.floats(1, 2 * EXPIRES_S))


def write_rows_then_commit(history: "Histories", run: str, name: str, rows: bytes) -> None:
    """As Ray Data does. A local file is there before it has its content, and synced when it is closed."""
    history.put(f"_checkpoint/{run}/{name}.pending.parquet", b"")
    history.put(f"rows/{name}-0.parquet", b"")
    history.put(f"rows/{name}-0.parquet", rows)
    history.put(f"_checkpoint/{run}/{name}.parquet", b"")
    history.store.rm_file(f"/out/_checkpoint/{run}/{name}.pending.parquet")


class Histories(RuleBasedStateMachine):
    """Attributes:
    corpus: the images of each shard, and the version that they have.
    labelled: the same of shards that were labelled and not replaced since; they may be gone.
    """

    write: Write = staticmethod(write_rows_then_commit)  # type: ignore[assignment]

    @initialize(seed=st.integers(0, 2**32), late=st.sampled_from([0.0, 0.0, 2.0]))
    def begin(self, seed: int, late: float) -> None:
        self.world = World(seed)
        self.store = SimulatedStore(self.world, late)
        self.output = Output(Location(self.store, "/out"))
        self.corpus: dict[str, tuple[int, int]] = {}
        self.labelled: dict[str, tuple[int, int]] = {}
        self.versions, self.runs = count(), count()

    @rule(name=names, images=st.integers(1, 5))
    def put_shard(self, name: str, images: int) -> None:
        """A new shard, or another one in place of it."""
        self.corpus[name] = (images, next(self.versions))
        self.labelled.pop(name, None)

    @rule(name=names)
    def delete_shard(self, name: str) -> None:
        self.corpus.pop(name, None)

    @rule(after=operations, outlives=st.integers(0, 5))
    def run_that_dies(self, after: int, outlives: int) -> None:
        self.start(Process(changes_left=after, outlives=outlives))
        self.go()

    @rule()
    def power_fails(self) -> None:
        finished = self.output.is_finished()
        self.store.lose_power()
        assert self.output.is_finished() == finished, "the power failure took rows of a finished output"

    @rule(first=pauses, second=pauses, workers=pauses, delay_s=st.floats(0, 60), dies=st.none() | operations)
    def two_runs(self, first: tuple[int, float] | None, second: tuple[int, float] | None,
                 workers: tuple[int, float] | None, delay_s: float, dies: int | None) -> None:  # fmt: skip
        """One, or its workers, may stand still for so long that the other takes it for dead."""
        runs = [Process(pause_at=first, changes_left=dies, outlives=3), Process(pause_at=second)]
        runs[0].companion = Process(pause_at=workers)
        self.start(runs[0])
        self.start(runs[1], delay_s)
        self.go()
        undisturbed = first is None and second is None and dies is None and not self.store.listed_after_s
        assert not undisturbed or any(run.error is None for run in runs), "nobody got the output"

    @rule(name=names, images=st.integers(1, 5), delay_s=st.floats(0, 60))
    def shard_replaced_in_flight(self, name: str, images: int, delay_s: float) -> None:
        def replace() -> None:
            self.world.sleep(delay_s)
            self.put_shard(name, images)

        self.start(Process())
        self.world.spawn(Process(), replace)
        self.go()

    @rule(share=st.floats(0.01, 0.2))
    def run_over_a_bad_connection(self, share: float) -> None:
        self.store.fails = share
        self.start(Process())
        self.go()
        self.store.fails = 0.0

    @rule(times=st.integers(1, 40))
    def run_with_a_reader(self, times: int) -> None:
        """A reader of a growing output sees every image that it had before, and none twice.

        If listings are late, a run may not have seen the last rows of the run before it, until it looks again.
        """
        unchanged = self.labelled.items() & self.corpus.items()
        known = {f"{shard}/{image}.jpg" for shard, (images, _) in unchanged for image in range(images)}

        def read() -> None:
            for _ in range(times):
                self.world.sleep(self.world.random.uniform(0, 2 * STEP_S if self.world.random.random() < 0.8 else 10))
                found = [row["image_id"] for row in self.rows()]
                assert self.store.listed_after_s or len(found) == len(set(found)), "a reader saw an image twice"
                assert self.store.listed_after_s or known <= set(found), "a reader missed an image"

        reader = Process()
        self.start(Process())
        self.world.spawn(reader, read)
        self.go()
        if reader.error is not None:
            raise reader.error

    @rule()
    def run_that_lives(self) -> None:
        self.settle()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.settle()
        super().teardown()

    def go(self) -> None:
        """Until all processes have ended."""
        with patch.object(cluster.run, "label", self.label):
            self.world.run()

    def settle(self) -> None:
        """Give the command until it succeeds, and check what it left."""
        for _ in range(4):
            self.world.now += EXPIRES_S  # listings show everything
            process = Process()
            self.start(process)
            self.go()
            if process.error is None:
                break
        assert process.error is None, f"the command does not succeed: {process.error!r}"
        self.labelled |= self.corpus
        self.check()

    def start(self, process: Process, delay_s: float = 0.0) -> None:
        """Run the command in a process."""
        process.name = f"run{next(self.runs)}"
        process.companion = process.companion or Process()

        def job() -> None:
            self.world.sleep(delay_s)
            try:
                self.drive()
            except EXPECTED as error:
                process.error = error
                self.world.kill(process)

        self.world.spawn(process, job)

    def drive(self) -> None:
        """The command, as `jobs.annotate` has it."""
        corpus = self.listed()
        self.output.check(MANIFEST, overwrite=False)
        if self.output.is_finished() and not find_changes(self.output, corpus):
            return
        with exclusive_run(self.output, MANIFEST, QUIET) as output:
            pipeline = Pipeline(corpus, None, None, None, MANIFEST, output, ClusterOptions())  # type: ignore[arg-type]
            stats = run_to_completion(pipeline, QUIET)
            output.finish(stats.files)

    def label(self, pipeline: Pipeline, _: Console) -> tuple[int, float, list[str]]:
        """A worker labels, the driver waits."""
        assert self.world.current is not None
        process = self.world.current.process
        workers = process.companion
        assert workers is not None

        def work() -> None:
            for number, shard in enumerate(pipeline.corpus.shards):
                self.world.sleep(self.world.random.uniform(0, LONGEST_LABELLING_S))
                self.label_shard(shard, process.name, number)

        self.world.spawn(workers, work)
        self.world.wait(lambda: not workers.alive)
        if workers.error is not None:
            raise workers.error
        return 0, 0.0, []

    def label_shard(self, shard: Shard, run: str, number: int) -> None:
        images, version = self.corpus[shard.name]
        rows = [self.row(shard, image, images, version) for image in range(images)]
        rows = [row for row in rows if row["image_id"] not in shard.done]
        for start in range(0, len(rows), ROWS_PER_FILE):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows[start : start + ROWS_PER_FILE], ROW_SCHEMA), buffer)
            type(self).write(self, run, f"{run}_{number:06}_{start:06}", buffer.getvalue())

    def put(self, name: str, content: bytes) -> None:
        self.store.pipe_file(f"/out/{name}", content)

    def listed(self) -> Corpus:
        shards = (Shard(name, f"/in/{name}", version=str(version)) for name, (_, version) in self.corpus.items())
        return Corpus(Location(self.store, "/in"), "tar", tuple(sorted(shards, key=lambda shard: shard.name)))

    def row(self, shard: Shard, image: int, images: int, version: int) -> dict[str, Any]:
        """The version that is read may be newer than the one that was listed."""
        last = images if image == images - 1 else None
        return {
            "image_id": f"{shard.name}/{image}.jpg", "uri": str(version), "shard": shard.name,
            "shard_version": shard.version, "status": Status.OK, "shard_images": last,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        files = [self.store.cat_file(path) for path in self.output.rows_files()]
        assert all(files), "a rows file that counts is empty"
        return [row for content in files for row in pq.read_table(io.BytesIO(content)).to_pylist()]

    def check(self) -> None:
        """Exactly one row for each image of the newest corpus. What is gone keeps its rows if it was labelled."""
        assert self.output.is_finished()
        rows = self.rows()
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
