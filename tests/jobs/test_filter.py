"""Selecting images by their classes."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest

from demo.world.names import CATEGORY
from jobs.filter import main
from schemas.image_ids import format_image_ids
from tests.support.drawn_labels import HEIGHT, WIDTH, failure, label_map, row, shuffled, write_labels
from tests.support.jobs import refusal

IMAGES = 30


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row(seed, label_map(seed)) for seed in range(IMAGES)]


@pytest.fixture(scope="module")
def labels(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(tmp_path_factory.mktemp("filter") / "labels", *shuffled([*rows, failure("gone.jpg")]))


def score(entry: dict[str, Any], name: str) -> float:
    return float(entry["class_scores"][CATEGORY[name] - 1])


def probability(entry: dict[str, Any], name: str) -> float:
    return float(entry["class_probabilities"][CATEGORY[name] - 1])


def share(entry: dict[str, Any], name: str) -> float:
    areas = {a["category_id"]: a["area"] for a in entry["annotations"]}
    return areas.get(CATEGORY[name], 0) / (HEIGHT * WIDTH)


def no_tree_below_the_sky(entry: dict[str, Any]) -> bool:
    return score(entry, "sky") > 0.7 and not share(entry, "tree")


def kept(labels: Path, target: Path, *flags: str) -> list[str]:
    assert main(["--labels", str(labels), "--output", str(target), *flags]) == 0
    return list(pq.read_table(target)["image_id"].to_pylist())


@pytest.mark.parametrize(
    ("flags", "holds"),
    [
        (["--require", "sky>0.6"], lambda r: score(r, "sky") > 0.6),
        (["--require", "car"], lambda r: share(r, "car") > 0),
        (["--exclude", "car"], lambda r: not share(r, "car")),
        (["--require-any", "sky>0.8,tree"], lambda r: score(r, "sky") > 0.8 or share(r, "tree") > 0),
        (["--where", "probability('sky') > 0.5"], lambda r: probability(r, "sky") > 0.5),
        (["--require", "sky>=0.5", "tree<0.3"], lambda r: score(r, "sky") >= 0.5 and score(r, "tree") < 0.3),
        (["--require", "sky>0.5", "--require", "tree>0.5"], lambda r: score(r, "sky") > 0.5 and score(r, "tree") > 0.5),
        (["--require-any", "tree>0.5,car>0.5"], lambda r: score(r, "tree") > 0.5 or score(r, "car") > 0.5),
        (["--exclude", "tree>0.5"], lambda r: not score(r, "tree") > 0.5),
        (["--min-area", "sky=0.3"], lambda r: share(r, "sky") >= 0.3),
        (["--where", "score('sky') > 0.7 AND area('tree') = 0"], no_tree_below_the_sky),
        (["--where", "width < 10"], lambda r: False),
    ],
)  # fmt: skip
def test_images_that_fulfil_the_conditions_are_kept(
    flags: list[str], holds: Any, labels: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = [entry["image_id"] for entry in rows if holds(entry)]
    assert kept(labels, tmp_path / "kept.parquet", *flags) == expected
    assert len(expected) < IMAGES, "the condition tells nothing apart"


def test_the_table_has_scores_and_says_where_it_comes_from(
    labels: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "kept.parquet"
    kept(labels, target, "--require", "sky>0.5", "--exclude", "car>0.5")
    table = pq.read_table(target)
    assert table.column_names == ["image_id", "uri", "width", "height", "classes", "score: sky", "score: car"]
    by_id = {entry["image_id"]: entry for entry in rows}
    for entry in table.to_pylist():
        assert entry["score: sky"] == pytest.approx(score(by_id[entry["image_id"]], "sky"))
    assert json.loads(table.schema.metadata[b"cliper"])["categories"]
    assert b"sky" in table.schema.metadata[b"cliper_filter"]
    assert duckdb.sql(f"SELECT count(*) FROM '{target}' WHERE \"score: sky\" > 0.5").fetchall() == [(len(table),)]
    assert polars.read_parquet(target).height == len(table)


def test_images_of_a_file_of_ids_are_left_out_and_unknown_ids_are_counted(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Odd ids too: quotes of SQL and of JSON, line breaks, white space."""
    odd = ["it's", '"quoted"', "two\nlines", " edge "]
    renamed = [entry | {"image_id": image_id} for entry, image_id in zip(rows, odd, strict=False)]
    labels = write_labels(tmp_path / "labels", *shuffled([*renamed, *rows[4:]]))
    (tmp_path / "marks.txt").write_text(format_image_ids([*odd, rows[7]["image_id"], "gone.jpg", "x' OR true --"]))
    ids = ["--exclude-ids", str(tmp_path / "marks.txt")]
    left = [entry for number, entry in enumerate(rows) if number >= 4 and number != 7]
    assert kept(labels, tmp_path / "kept.parquet", *ids) == [entry["image_id"] for entry in left]
    assert "2 of the 7 ids in --exclude-ids are not of labelled images." in capsys.readouterr().out
    skies = [entry["image_id"] for entry in left if score(entry, "sky") > 0.6]
    assert kept(labels, tmp_path / "skies.parquet", *ids, "--require", "sky>0.6") == skies


def test_stats_show_scores_with_and_without_truth(
    labels: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores are at least 0.5 where a class is and 0.1 elsewhere: no threshold between them makes a mistake."""
    monkeypatch.setenv("COLUMNS", "200")
    trees = sum(share(entry, "tree") > 0 for entry in rows)
    lines = [f"{entry['image_id']},{'tree' if share(entry, 'tree') else ''}" for entry in rows]
    (tmp_path / "truth.csv").write_text("\n".join(["image_id,class", *lines]))
    flags = ["--stats", "--classes", "tree", "--truth", str(tmp_path / "truth.csv")]
    assert main(["--labels", str(labels), *flags]) == 0
    printed = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    histogram, quality = (cells for cells in printed if cells[:1] == ["tree"])
    tenths, _ = np.histogram([score(entry, "tree") for entry in rows], np.arange(11, dtype=np.float32) / 10)
    assert (histogram[1], histogram[-10:]) == (str(trees), [str(count) for count in tenths])
    assert quality[1:6] == [str(trees), *["1.00"] * 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--require", "skyy>0.5"], "sky"),
        (["--require", "skyy"], "sky"),
        (["--require", "sky>"], "sky>"),
        (["--require", "sky>abc"], "sky>abc"),
        (["--require", "sky>60"], "60"),
        (["--min-area", "sky=1.5"], "1.5"),
        (["--where", "nothing = 1"], "nothing"),
        (["--where", "score('skyy') > 1"], "skyy"),
        (["--labels", "{tmp}"], "has no manifest.json"),
        (["--exclude-ids", "{tmp}/nowhere.txt"], "--exclude-ids {tmp}/nowhere.txt cannot be read"),
        (["--exclude-ids", "/dev/null"], "--exclude-ids /dev/null: there is no image id in it"),
        (["--output", "{tmp}"], "is a folder"),
        (["--output", "{labels}/kept.parquet"], "choose a place outside the labels"),
        (["--copy-to", "{labels}/copies"], "choose a place outside the labels"),
    ],
)
def test_wrong_requests_are_one_sentence(flags: list[str], message: str, labels: Path, tmp_path: Path) -> None:
    right = ["--labels", str(labels), "--output", str(tmp_path / "kept.parquet")]
    message = message.replace("{tmp}", str(tmp_path))
    assert message in refusal(
        main, *right, *(flag.replace("{tmp}", str(tmp_path)).replace("{labels}", str(labels)) for flag in flags)
    )


def test_existing_files_are_replaced_only_with_overwrite(labels: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.parquet"
    first = kept(labels, target, "--require", "sky>0.5")
    assert "--overwrite" in refusal(main, "--labels", str(labels), "--output", str(target), "--require", "sky>0.8")
    assert pq.read_table(target)["image_id"].to_pylist() == first
    assert kept(labels, target, "--require", "sky>0.8", "--overwrite") != first


def test_files_of_the_machine_cannot_be_read_through_where(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    reading = f"EXISTS (SELECT * FROM read_csv('{tmp_path}/secret.csv'))"
    request = ["--labels", str(labels), "--output", str(tmp_path / "k.parquet"), "--where", reading]
    assert "file system" in refusal(main, *request)
