"""Real photographs, a real CLIP tower: are the labels right?

Needs files that the project does not ship, named by two environment variables; without them there is nothing to run:
`CLIPER_PHOTOS`, a folder with `images/*.jpg`, `masks/*.png` (index masks, 0 unlabelled) and
`coco_stuff171_to_mask_value.json`; and `CLIPER_REAL_CLIP`, a folder with an open_clip model of OpenAI's ViT-B/16 in
`clip/` and COCO-Stuff embeddings in `text_embeddings.npz` (`coco_stuff171`, `coco_stuff171_names`).
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cliper.vocabulary import synonymous_classes, without_synonyms
from schemas.embeddings import VocabularyEmbeddings, embeddings_to_bytes
from tests.support.corpora import shards_of, tar_bytes
from tests.support.jobs import OutputReader, SharedRay
from tests.support.s3_server import BUCKET, s3_client

PHOTOS, REAL_CLIP = os.environ.get("CLIPER_PHOTOS"), os.environ.get("CLIPER_REAL_CLIP")
COCO_STUFF_SETTINGS = [
    "--logit-scale",
    "50",
    "--attention-threshold",
    "0.2",
    "--preset",
    "release",
    "--score-threshold",
    "0.1",
    "--background-threshold",
    "0.1",
    "--no-normalize-maps",
    "--diffusion",
    "none",
]
NO_TRUTH, NOT_PREDICTED = 254, 255


def write_embeddings(npz: Path, target: Path) -> list[str]:
    with np.load(npz, allow_pickle=False) as file:
        names, rows = [str(name) for name in file["coco_stuff171_names"]], file["coco_stuff171"].astype(np.float32)
    none = np.zeros((0, rows.shape[1]), np.float32)
    target.write_bytes(embeddings_to_bytes(VocabularyEmbeddings(rows, tuple(names), none, ())))
    return names


@pytest.mark.skipif(not (PHOTOS and REAL_CLIP), reason="CLIPER_PHOTOS and CLIPER_REAL_CLIP are not set")
def test_photographs_from_s3(ray_here: SharedRay, tmp_path: Path) -> None:
    photos, clip = Path(str(PHOTOS)), Path(str(REAL_CLIP))
    images = {path.name: path.read_bytes() for path in sorted((photos / "images").glob("*.jpg"))}
    client = s3_client(ray_here.env)
    for number, members in enumerate(shards_of(images, 10)):
        client.pipe_file(f"{BUCKET}/photos/{number:05}.tar", tar_bytes(members))
    names = write_embeddings(clip / "text_embeddings.npz", tmp_path / "embeddings.safetensors")
    models = ["--clip", f"local-dir:{clip / 'clip'}", "--text-embeddings", str(tmp_path / "embeddings.safetensors")]
    output = f"s3://{BUCKET}/photo-labels"
    run = ray_here.annotate(f"s3://{BUCKET}/photos", output, *models, *COCO_STUFF_SETTINGS)
    assert run.returncode == 0, run.stderr

    rows = OutputReader(output, ray_here.env).rows()
    assert len(rows) == len(images)
    assert {row["status"] for row in rows.values()} == {"ok"}
    mask_value = json.loads((photos / "coco_stuff171_to_mask_value.json").read_text())
    confusion = np.zeros((256, 256), np.int64)
    for image_id, row in rows.items():
        truth = np.asarray(Image.open(photos / "masks" / f"{Path(image_id).stem}.png"))
        predicted = np.full(truth.shape, NOT_PREDICTED)
        for annotation in row["annotations"]:
            name = names[annotation["category_id"] - 1]
            predicted[coco_mask.decode(annotation["segmentation"]) == 1] = mask_value.get(name, NO_TRUTH)
        np.add.at(confusion, (truth[truth > 0], predicted[truth > 0]), 1)
    hits, present = np.diag(confusion), confusion.sum(axis=1) > 0
    iou = hits / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1) - hits, 1)
    print(f"mean IoU {iou[present].mean():.4f} over {present.sum()} classes, "
          f"pixel accuracy {hits.sum() / confusion.sum():.4f}")  # fmt: skip
    assert iou[present].mean() > 0.2


@pytest.mark.skipif(not REAL_CLIP, reason="CLIPER_REAL_CLIP is not set")
def test_words_that_mean_the_same_in_two_benchmarks_are_found() -> None:
    """The names of PASCAL VOC as classes, those of COCO-Stuff as background."""
    assert REAL_CLIP is not None
    words = np.load(Path(REAL_CLIP) / "text_embeddings.npz", allow_pickle=False)
    names = tuple(map(str, words["coco_stuff171_names"]))
    voc = VocabularyEmbeddings(words["voc20"], tuple(map(str, words["voc20_names"])), words["coco_stuff171"], names)
    left_out = set(names) - set(without_synonyms(voc).background_words)
    same = {"airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"}
    same |= {"horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train"}
    assert left_out == same
    assert synonymous_classes(voc) == []
