"""Label maps as PNG."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from schemas.label_png import id_to_label, label_png


@pytest.mark.parametrize(
    ("classes", "mode", "bits"), [(1, "P", 8), (255, "P", 8), (256, "I;16", 16), (1000, "I;16", 16)]
)
def test_numbers_come_back(classes: int, mode: str, bits: int) -> None:
    labels = np.array([[0, 1, classes], [classes, 0, classes // 2]], np.int64)
    content = label_png(labels, classes)
    assert content[24] == bits, "bit depth in the PNG's header"
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), labels)


def test_colours_are_those_of_pascal_voc() -> None:
    with Image.open(io.BytesIO(label_png(np.array([[0, 1, 15, 20]]), 20))) as image:
        colours = np.asarray(image.convert("RGB"))[0].tolist()
    assert colours == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128]]


def test_names_are_read_as_hugging_face_reads_them() -> None:
    names = json.loads(id_to_label([{"id": 1, "name": "cat"}, {"id": 2, "name": "M\u00f6we"}]))
    assert names == {"0": "background", "1": "cat", "2": "M\u00f6we"}
