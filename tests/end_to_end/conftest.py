"""One undisturbed run for all end-to-end tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.corpora import sample_images, shards_of, tar_bytes
from tests.support.jobs import OutputReader, SharedRay, tiny_flags
from tests.support.s3_server import BUCKET, s3_client

IMAGES = 48
PER_SHARD = 7


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "end_to_end" in item.path.parts:
            item.add_marker(pytest.mark.end_to_end)
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class FinishedRun:
    """An undisturbed run over tar shards in the bucket."""

    corpus: str
    output: str
    flags: list[str]
    stdout: str
    ray: SharedRay

    def reader(self) -> OutputReader:
        return OutputReader(self.output, self.ray.env)


@pytest.fixture(scope="session")
def finished_run(
    ray_here: SharedRay, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_diffusion: Path
) -> FinishedRun:
    client = s3_client(ray_here.env)
    for number, members in enumerate(shards_of(sample_images(IMAGES), PER_SHARD)):
        client.pipe_file(f"{BUCKET}/shards/{number:05}.tar", tar_bytes(members))
    flags = tiny_flags(tmp_path_factory.mktemp("request"), tiny_clip, tiny_diffusion)
    corpus, output = f"s3://{BUCKET}/shards", f"s3://{BUCKET}/labels"
    run = ray_here.annotate(corpus, output, *flags)
    assert run.returncode == 0, run.stderr
    return FinishedRun(corpus, output, flags, run.stdout, ray_here)
