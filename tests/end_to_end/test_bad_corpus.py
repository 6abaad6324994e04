"""The whole job over every bad input there is: no crash, each its row, healthy neighbours labelled."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from schemas.rows import Status
from tests.corpus.images import odd_images
from tests.corpus.shards import Expected, odd_tables, odd_tars
from tests.support.jobs import OutputReader, SharedRay, tiny_flags


def corpus_of(kind: str, made_in: Path) -> tuple[dict[str, bytes], Expected]:
    """File names to bytes, and the rows that must come out."""
    if kind == "images":
        images = odd_images()
        return {name: data for name, (data, _) in images.items()}, {
            name: status for name, (_, status) in images.items()
        }
    odd: Mapping[str, tuple[bytes, Expected]] = odd_tars() if kind == "tars" else odd_tables(made_in)
    rows = {image_id: status for _, expected in odd.values() for image_id, status in expected.items()}
    return {name: data for name, (data, _) in odd.items()}, rows


@pytest.mark.parametrize("kind", ["images", "tars", "tables"])
def test_every_bad_input_is_a_row_and_the_others_are_labelled(
    kind: str, tmp_path: Path, tiny_clip: Path, ray_here: SharedRay
) -> None:
    files, expected = corpus_of(kind, tmp_path)
    corpus = tmp_path / "in"
    corpus.mkdir()
    for name, data in files.items():
        (corpus / name).write_bytes(data)
    flags = [*tiny_flags(tmp_path, tiny_clip, "none"), "--max-failed-fraction", "1"]
    run = ray_here.annotate(str(corpus), str(tmp_path / "out"), *flags)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    rows = OutputReader(str(tmp_path / "out"), {}).rows()
    assert {image_id: row["status"] for image_id, row in rows.items()} == expected
    for row in rows.values():
        if row["status"] == Status.OK:
            assert row["annotations"] is not None
            assert row["error"] is None
        else:
            assert row["shard"] in row["error"], "the sentence names the file"
            assert "\n" not in row["error"]
