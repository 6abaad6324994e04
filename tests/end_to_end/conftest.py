"""One S3 server and one undisturbed run for all end-to-end tests of a worker; a file's tests run in one worker."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.runs import OutputReader, annotate, tiny_flags
from tests.support.corpora import pictures, shards_of, tar_bytes
from tests.support.s3_server import BUCKET, s3_client, seaweed

PICTURES = 48
PER_SHARD = 7


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "end_to_end" in item.path.parts:
            item.add_marker(pytest.mark.end_to_end)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweed(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@dataclass(frozen=True)
class FinishedRun:
    """An undisturbed run over tar shards in the bucket."""

    corpus: str
    output: str
    flags: list[str]
    stdout: str
    stderr: str
    env: dict[str, str]

    def reader(self) -> OutputReader:
        return OutputReader(self.output, self.env)


@pytest.fixture(scope="session")
def finished_run(
    s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_diffusion: Path
) -> FinishedRun:
    client = s3_client(s3)
    for number, members in enumerate(shards_of(pictures(PICTURES), PER_SHARD)):
        client.pipe_file(f"{BUCKET}/shards/{number:05}.tar", tar_bytes(members))
    flags = tiny_flags(tmp_path_factory.mktemp("request"), tiny_clip, tiny_diffusion)
    corpus, output = f"s3://{BUCKET}/shards", f"s3://{BUCKET}/labels"
    run = annotate(corpus, output, *flags, env=s3)
    assert run.returncode == 0, run.stderr
    return FinishedRun(corpus, output, flags, run.stdout, run.stderr, s3)
