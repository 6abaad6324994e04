"""Images that crash, block or fill the process that decodes them cost their own row and nothing else.

No decoder that is installed is known to crash. A module that Python loads at the start of every process gives one the
faults: it looks for a comment in the file.
"""

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.support.corpora import jpeg
from tests.support.jobs import OutputReader, annotate, tiny_flags

FAULTY_DECODER = """
import ctypes, os, signal
from PIL import JpegImagePlugin

load = JpegImagePlugin.JpegImageFile.load

def faulty(image):
    match image.info.get("comment"):
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"loop":
            ctypes.PyDLL(None).pause()  # in C, holding the interpreter's lock
        case b"memory":
            bytearray(10 * 10**9)
    return load(image)

JpegImagePlugin.JpegImageFile.load = faulty
"""
STATUSES = {"crash": "crashed", "loop": "timed_out", "memory": "out_of_memory", "large": "too_large"}


def poison(kind: str, number: int) -> bytes:
    file = io.BytesIO()
    if kind == "large":
        Image.new("1", (20_000, 20_000 + number)).save(file, "PNG")
    else:
        Image.new("RGB", (40, 30 + number)).save(file, "JPEG", comment=kind)
    return file.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(("good", "each", "allowed"), [(12, 1, "0.25"), (500, 5, "0.1")], ids=["few", "five hundred"])
def test_poison_costs_its_own_rows(good: int, each: int, allowed: str, tmp_path: Path, tiny_clip: Path) -> None:
    corpus, hook = tmp_path / "in", tmp_path / "hook"
    corpus.mkdir()
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(FAULTY_DECODER)
    expected = {f"{number:05}.jpg": "ok" for number in range(good)}
    for name in expected:
        (corpus / name).write_bytes(jpeg(int(name[:5])))
    for kind, status in STATUSES.items():
        for number in range(each):
            name = f"{number * good // each:05}-{kind}.{'png' if kind == 'large' else 'jpg'}"
            (corpus / name).write_bytes(poison(kind, number))
            expected[name] = status
    flags = [*tiny_flags(tmp_path, tiny_clip, "none"), "--picture-timeout-s", "2", "--max-failed-fraction", allowed]
    run = annotate(str(corpus), str(tmp_path / "out"), *flags, env={"PYTHONPATH": str(hook)})
    assert run.returncode == 0, run.stderr
    rows = OutputReader(str(tmp_path / "out"), {}).rows()
    assert {image_id: row["status"] for image_id, row in rows.items()} == expected
    assert Counter(expected.values()) == {"ok": good} | dict.fromkeys(STATUSES.values(), each)
    for image_id, row in rows.items():
        assert (row["error"] is None) == (row["status"] == "ok")
        assert row["error"] is None or image_id in row["error"]
