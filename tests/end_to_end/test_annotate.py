"""The job from object storage to Parquet and back: real S3 server, real Ray, small models with diffusion."""

import io
import itertools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from cliper.coarse import Queries
from cliper.decode import image_seed
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.settings import MethodSettings
from schemas.embeddings import embeddings_from_bytes
from schemas.manifest import METADATA_KEY
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels
from tests.end_to_end.conftest import IMAGES, PER_SHARD, FinishedRun
from tests.support.corpora import decode_image, jpeg, sample_images, write_folder, write_tables, write_tars
from tests.support.jobs import OutputReader, broken_copy
from tests.support.s3_server import BUCKET, s3_client
from tests.support.stages import predict

CLASSES = ["thing", "other", "last thing, with a comma"]


class TestFinishedRun:
    def test_every_image_has_its_row(self, finished_run: FinishedRun) -> None:
        rows = finished_run.reader().rows()
        expected = {f"{i // PER_SHARD:05}.tar/{i:05}.jpg" for i in range(IMAGES)}
        assert rows.keys() == expected
        assert {row["status"] for row in rows.values()} == {Status.OK}
        first = rows["00000.tar/00001.jpg"]
        assert first["uri"] == f"tar://00001.jpg::s3://{BUCKET}/shards/00000.tar"
        assert (first["shard"], first["width"], first["height"]) == ("00000.tar", 90, 60)

    def test_files_have_the_documented_schema_and_metadata(self, finished_run: FinishedRun) -> None:
        files = finished_run.reader().files()
        manifest = files["manifest.json"]
        tables = [data for name, data in files.items() if name.startswith("rows/")]
        assert tables
        for data in tables:
            schema = pq.read_schema(io.BytesIO(data))
            assert schema.equals(ROW_SCHEMA)
            assert json.loads(schema.metadata[METADATA_KEY]) == json.loads(manifest)
        document = json.loads(manifest)
        assert document["categories"] == [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        assert document["settings"]["logit_scale"] == 40
        assert document["models"]["clip"]["revision"].startswith("sha256:")
        assert "_SUCCESS" in files
        assert not any("checkpoint" in name for name in files)

    def test_annotations_hold_together(self, finished_run: FinishedRun) -> None:
        seen_classes = set()
        for row in finished_run.reader().rows().values():
            covered = np.zeros((row["height"], row["width"]), bool)
            assert len(row["class_scores"]) == len(CLASSES)
            ids = [annotation["category_id"] for annotation in row["annotations"]]
            assert ids == sorted(set(ids))
            for annotation in row["annotations"]:
                assert annotation["segmentation"]["size"] == [row["height"], row["width"]]
                mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
                ys, xs = np.nonzero(mask)
                assert annotation["area"] == mask.sum() > 0
                assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert annotation["score"] == row["class_scores"][annotation["category_id"] - 1]
                assert annotation["iscrowd"] == 0
                assert not (covered & mask).any(), "classes are disjoint"
                covered |= mask
                seen_classes.add(annotation["category_id"])
        assert len(seen_classes) > 1, "the models are not worth testing if they see one class everywhere"

    def test_rows_equal_the_librarys_own_result(
        self, finished_run: FinishedRun, tiny_clip: Path, tiny_diffusion: Path
    ) -> None:
        files = finished_run.reader().files()
        settings = json.loads(files["manifest.json"])["settings"]
        embeddings = embeddings_from_bytes(files["vocabulary.safetensors"])
        assert embeddings.row_names == ("thing", "other", "other", "last thing, with a comma")
        cpu = torch.device("cpu")
        tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), cpu, torch.float32)
        prompt = torch.zeros(1, 77, 8)
        diffusion = load_diffusion(find_diffusion(str(tiny_diffusion)), prompt, cpu, torch.float32)
        queries = Queries.build(
            torch.tensor(embeddings.classes), torch.tensor(embeddings.background), torch.tensor([0, 1, 1, 2])
        )
        cliper = Cliper(tower, queries, MethodSettings.from_document(settings), diffusion)
        rows = finished_run.reader().rows()
        for index in (0, 1, IMAGES - 1):
            data = jpeg(index)
            (ours,) = predict(cliper, [decode_image(data)], [image_seed(data)])
            row = rows[f"{index // PER_SHARD:05}.tar/{index:05}.jpg"]
            assert np.allclose(row["class_scores"], ours.scores, rtol=1e-4)
            expected = annotations_from_labels(ours.labels.numpy(), ours.scores.numpy())
            assert [a["category_id"] for a in row["annotations"]] == [a["category_id"] for a in expected]
            for mine, theirs in zip(row["annotations"], expected, strict=True):
                overlap = coco_mask.iou([mine["segmentation"]], [theirs["segmentation"]], [0])
                assert overlap > 0.99

    def test_summary_counts_and_is_shown(self, finished_run: FinishedRun) -> None:
        summary = finished_run.reader().json("summary.json")
        assert (summary["images"], summary["ok"], summary["failed"]) == (IMAGES, IMAGES, 0)
        assert summary["by_status"] == {"ok": IMAGES}
        present = [
            {CLASSES[annotation["category_id"] - 1] for annotation in row["annotations"]}
            for row in finished_run.reader().rows().values()
        ]
        counted = {name: sum(name in classes for classes in present) for name in CLASSES}
        assert summary["images_by_class"] == {name: count for name, count in counted.items() if count}
        assert summary["images_per_second"] > 0
        assert f"{summary['images_per_second']:.3g} a second after the start" in finished_run.stdout

    def test_the_commands_for_what_comes_next_can_be_pasted(self, finished_run: FinishedRun, tmp_path: Path) -> None:
        commands = finished_run.stdout.partition("Next:\n")[2].splitlines()
        for command in commands:
            run = subprocess.run(
                command, shell=True, cwd=tmp_path, env=os.environ | finished_run.ray.env, capture_output=True, text=True
            )
            assert run.returncode == 0, run.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"report.html", "kept.parquet", "coco.json"}

    def test_the_same_command_again_does_nothing(self, finished_run: FinishedRun) -> None:
        before = finished_run.reader().files()
        again = finished_run.ray.annotate(finished_run.corpus, finished_run.output, *finished_run.flags)
        assert again.returncode == 0, again.stderr
        assert "Already finished" in again.stdout
        assert finished_run.reader().files() == before

    def test_ready_embeddings_give_the_same_rows(self, finished_run: FinishedRun, tmp_path: Path) -> None:
        """The embeddings of one run serve another in the place of the text tower, in another batch size."""
        embeddings = tmp_path / "vocabulary.safetensors"
        embeddings.write_bytes(finished_run.reader().files()["vocabulary.safetensors"])
        flags = [*finished_run.flags, "--text-embeddings", str(embeddings), "--batch-size", "1"]
        run = finished_run.ray.annotate(finished_run.corpus, str(tmp_path / "labels"), *flags)
        assert run.returncode == 0, run.stderr
        assert OutputReader(str(tmp_path / "labels"), {}).rows() == finished_run.reader().rows()


def by_content(rows: dict[str, dict[str, Any]]) -> list[Any]:
    """What the rows say of the images, in the order of the images, without names and addresses."""
    ordered = [rows[image_id] for image_id in sorted(rows, key=image_number)]
    return [(row["width"], row["height"], row["class_scores"], row["annotations"]) for row in ordered]


def image_number(image_id: str) -> int:
    """The image's number in its name, or shard and row number in a table."""
    shard, _, member = image_id.rpartition("/")
    if member.endswith(".jpg"):
        return int(member.removesuffix(".jpg"))
    return int(shard.removesuffix(".parquet")) * PER_SHARD + int(member)


@pytest.mark.parametrize("kind", ["tables", "hugging-face-tables", "folder"])
def test_every_kind_of_corpus_gives_the_same_annotations(kind: str, finished_run: FinishedRun, tmp_path: Path) -> None:
    images = sample_images(IMAGES)
    if kind == "folder":
        corpus = write_folder(tmp_path / "in", {f"day/{name}": data for name, data in images.items()})
    else:
        corpus = write_tables(tmp_path / "in", images, PER_SHARD, hugging_face=kind.startswith("hugging"))
    run = finished_run.ray.annotate(str(corpus), str(tmp_path / "out"), *finished_run.flags)
    assert run.returncode == 0, run.stderr
    assert by_content(OutputReader(str(tmp_path / "out"), {}).rows()) == by_content(finished_run.reader().rows())


@pytest.mark.long
def test_two_actors_give_the_same_rows_as_one(finished_run: FinishedRun, tmp_path: Path) -> None:
    flags = [*finished_run.flags, "--actors", "2", "--batch-size", "3"]
    run = finished_run.ray.annotate(finished_run.corpus, str(tmp_path / "out"), *flags)
    assert run.returncode == 0, run.stderr
    assert OutputReader(str(tmp_path / "out"), {}).rows() == finished_run.reader().rows()


@pytest.mark.faults
def test_failures_that_may_pass_are_tried_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    slow = io.BytesIO()
    Image.effect_noise((7000, 7000), 100).save(slow, "PNG", compress_level=1)
    images = sample_images(11) | {"cut.jpg": jpeg(1)[:500], "slow.png": slow.getvalue()}
    corpus, out = str(write_tars(tmp_path / "in", images, per_shard=7)), str(tmp_path / "out")
    flags = [*finished_run.flags, "--max-failed-fraction", "0.2"]
    hasty = finished_run.ray.annotate(corpus, out, *flags, "--picture-timeout-s", "0.15")
    assert hasty.returncode == 0, hasty.stderr
    output = OutputReader(out, {})
    before = output.rows()
    assert {name: row["status"] for name, row in before.items() if row["status"] != "ok"} == {
        "00001.tar/cut.jpg": "truncated", "00001.tar/slow.png": "timed_out",
    }  # fmt: skip
    again = finished_run.ray.annotate(corpus, out, *flags, "--retry-failed")
    assert again.returncode == 0, again.stderr
    assert "Trying again: 1 failed images." in again.stdout
    after = output.rows()
    assert after.pop("00001.tar/slow.png")["status"] == "ok"
    del before["00001.tar/slow.png"]
    assert after == before
    assert output.json("summary.json")["bytes_read"] == sum(len(images[name]) for name in sorted(images)[7:])


def test_words_that_look_like_markup_are_words(finished_run: FinishedRun, tmp_path: Path) -> None:
    vocabulary = tmp_path / "markup.txt"
    vocabulary.write_text("[/x]\n[bold]thing\n[link=a]other\n")
    corpus = str(write_folder(tmp_path / "in", sample_images(3)))
    flags = [*finished_run.flags, "--vocab", str(vocabulary)]
    run = finished_run.ray.annotate(corpus, str(tmp_path / "out"), *flags)
    assert run.returncode == 0, run.stderr
    for word in ("[/x]", "[bold]thing", "[link=a]other"):
        assert word in run.stdout


def test_words_come_from_a_pipe_too(finished_run: FinishedRun, tmp_path: Path) -> None:
    """As from ``--vocab <(echo sky)``."""
    corpus = str(write_folder(tmp_path / "in", sample_images(1)))
    reading, writing = os.pipe()
    os.write(writing, b"sky\nsea\n")
    os.close(writing)
    flags = [*finished_run.flags, "--vocab", f"/dev/fd/{reading}"]
    run = finished_run.ray.annotate(corpus, str(tmp_path / "out"), *flags)
    os.close(reading)
    assert run.returncode == 0, run.stderr
    categories = OutputReader(str(tmp_path / "out"), {}).json("manifest.json")["categories"]
    assert [category["name"] for category in categories] == ["sky", "sea"]


def test_a_baseline_labels_too(finished_run: FinishedRun, tmp_path: Path) -> None:
    write_folder(tmp_path / "in", {"one.jpg": jpeg(1), "two.jpg": jpeg(2, (90, 60))})
    flags = finished_run.flags[:4]  # vocabulary and CLIP
    run = finished_run.ray.annotate(str(tmp_path / "in"), str(tmp_path / "out"), *flags, "--method", "clearclip")
    assert run.returncode == 0, run.stderr
    output = OutputReader(str(tmp_path / "out"), {})
    assert {row["status"] for row in output.rows().values()} == {"ok"}
    settings = output.json("manifest.json")["settings"]
    assert (settings["method"], settings["harness"], settings["crop_px"]) == ("clearclip", "published", 448)


def test_memory_that_no_machine_has_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    """Ray would wait for ever for a node that has it."""
    flags = [*finished_run.flags, "--decode-memory-mb", "99000000"]
    run = finished_run.ray.annotate(finished_run.corpus, str(tmp_path / "out"), *flags)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: decoding reserves 99000.0 GB and ")
    assert line.endswith(" GB to tasks: lower --decode-memory-mb")


def test_bad_images_become_rows_and_their_neighbours_are_labelled(finished_run: FinishedRun, tmp_path: Path) -> None:
    good = jpeg(1)
    images = {
        "1-good.jpg": good,
        "2-cut.jpg": good[: len(good) // 2],
        "3-html.jpg": b"<html></html>",
        "4-empty.jpg": b"",
        "5-tiny.jpg": jpeg(2, (1, 1)),
        "6-panorama.jpg": jpeg(3, (50, 6000)),
        "7-good.jpg": good,
    }
    corpus = write_tars(tmp_path / "in", images, per_shard=7)
    tar = corpus / "00000.tar"
    (corpus / "00001.tar").write_bytes(tar.read_bytes()[:3000])
    run = finished_run.ray.annotate(str(corpus), str(tmp_path / "out"), *finished_run.flags)
    assert run.returncode == 1
    assert "4 of 9 images failed, more than --max-failed-fraction 0.1 allows" in run.stderr
    output = OutputReader(str(tmp_path / "out"), {})
    rows = output.rows()
    assert output.json("summary.json")["failed"] == 4
    accept = [*finished_run.flags, "--max-failed-fraction", "0.5"]
    run = finished_run.ray.annotate(str(corpus), str(tmp_path / "out"), *accept)
    assert run.returncode == 0, run.stderr
    assert output.rows() == rows
    assert output.json("summary.json")["bytes_read"] == 0
    statuses = {name: rows[f"00000.tar/{name}"]["status"] for name in images}
    assert statuses == {
        "1-good.jpg": "ok",
        "2-cut.jpg": "truncated",
        "3-html.jpg": "not_an_image",
        "4-empty.jpg": "empty",
        "5-tiny.jpg": "ok",
        "6-panorama.jpg": "ok",
        "7-good.jpg": "ok",
    }
    assert rows["00001.tar/1-good.jpg"]["status"] == "ok", "it lies before the cut"
    broken = rows["00001.tar"]
    assert broken["status"] == "broken_shard"
    for row in rows.values():
        if row["status"] != "ok":
            assert row["uri"] in row["error"]
            assert row["annotations"] is None
            assert row["class_scores"] is None
    assert rows["00000.tar/1-good.jpg"]["annotations"] == rows["00000.tar/7-good.jpg"]["annotations"]
    summary = OutputReader(str(tmp_path / "out"), {}).json("summary.json")
    assert summary["by_status"] == {"ok": 5, "truncated": 1, "not_an_image": 1, "empty": 1, "broken_shard": 1}


def test_limit_then_overwrite(finished_run: FinishedRun, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    trial = finished_run.ray.annotate(finished_run.corpus, output, *finished_run.flags, "--limit", "7")
    assert trial.returncode == 0, trial.stderr
    everything = finished_run.reader().rows()
    assert OutputReader(output, {}).rows() == dict(itertools.islice(sorted(everything.items()), 7))
    refused = finished_run.ray.annotate(finished_run.corpus, output, *finished_run.flags)
    assert refused.returncode == 2
    assert "changed: input.limit" in refused.stderr
    anew = finished_run.ray.annotate(finished_run.corpus, output, *finished_run.flags, "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert OutputReader(output, {}).rows() == everything


def test_a_model_that_cannot_be_loaded_fails_the_job_in_one_sentence(
    finished_run: FinishedRun, tmp_path: Path, tiny_diffusion: Path
) -> None:
    """The folder looks right, so the request passes; the actor finds out."""
    broken = broken_copy(tiny_diffusion, tmp_path / "diffusion")
    flags = [*finished_run.flags, "--diffusion", str(broken)]
    run = finished_run.ray.annotate(finished_run.corpus, str(tmp_path / "out"), *flags)
    assert run.returncode == 1
    assert "cannot be loaded" in run.stderr
    assert "Traceback" not in run.stderr
    assert "The same command continues" in run.stderr


def test_no_bucket_is_ever_created(finished_run: FinishedRun) -> None:
    run = finished_run.ray.annotate(finished_run.corpus, "s3://mistyped/labels", *finished_run.flags)
    assert run.returncode == 2
    assert "s3://mistyped/labels" in run.stderr
    assert s3_client(finished_run.ray.env).ls("") == [BUCKET]


def test_a_plan_is_printed_and_nothing_written(finished_run: FinishedRun) -> None:
    output = f"s3://{BUCKET}/planned"
    look = [*finished_run.flags, "--plan", "--actor-images-per-second", "2", "--actor-price-per-hour", "3600"]
    planned = finished_run.ray.annotate(finished_run.corpus, output, *look, COLUMNS="200")
    assert planned.returncode == 0, planned.stderr
    assert "49 (estimated: shards: 7, in 00003.tar: 7)" in planned.stdout
    assert "2.00 images per second (computed: 1 x --actor-images-per-second)" in planned.stdout
    assert "24.00 (computed)" in planned.stdout
    assert not OutputReader(output, finished_run.ray.env).names()


def test_gpus_that_nobody_promised_are_a_wrong_request(finished_run: FinishedRun) -> None:
    flags = [*finished_run.flags, "--gpus-per-actor", "1"]
    refused = finished_run.ray.annotate(finished_run.corpus, f"s3://{BUCKET}/no-gpus", *flags)
    assert refused.returncode == 2
    assert "say to how many actors with --actors" in refused.stderr
