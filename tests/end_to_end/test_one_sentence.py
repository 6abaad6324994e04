"""What fails outside the job's own code is one sentence too: no traceback, no advice of a library."""

from pathlib import Path

from tests.support.corpora import sample_images, write_folder
from tests.support.jobs import annotate, tiny_flags


def test_ray_that_does_not_start(tiny_clip: Path, tmp_path: Path) -> None:
    corpus, flags = write_folder(tmp_path / "in", sample_images(1)), tiny_flags(tmp_path, tiny_clip, "none")
    too_long_for_sockets = str(tmp_path / ("x" * 110))
    ended = annotate(str(corpus), str(tmp_path / "out"), *flags, env={"RAY_TMPDIR": too_long_for_sockets})
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("error: Ray does not start on this machine: ")


def test_a_hub_that_does_not_answer(tiny_clip: Path, tmp_path: Path) -> None:
    flags, output = tiny_flags(tmp_path, tiny_clip, "none"), str(tmp_path / "out")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    ended = annotate("hf://datasets/someone/images", output, *flags, env=nobody)
    assert ended.returncode == 2
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("error: --input hf://datasets/someone/images: ")
