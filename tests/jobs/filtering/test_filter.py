"""Filtering by what is in the pictures."""

import json
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.parquet as pq
import pytest

from demo.world.names import CATEGORY
from jobs.filter import main
from tests.support.drawn_labels import HEIGHT, WIDTH, failure, label_map, row, write_labels

PICTURES = 30


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [row(seed, label_map(seed)) for seed in range(PICTURES)]


@pytest.fixture(scope="module")
def labels(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(tmp_path_factory.mktemp("filter") / "labels", [*rows, failure("gone.jpg")])


def score(entry: dict[str, Any], name: str) -> float:
    return float(entry["class_scores"][CATEGORY[name] - 1])


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
        (["--require", "sky>=0.5", "tree<0.3"], lambda r: score(r, "sky") >= 0.5 and score(r, "tree") < 0.3),
        (["--require", "sky>0.5", "--require", "tree>0.5"], lambda r: score(r, "sky") > 0.5 and score(r, "tree") > 0.5),
        (["--require-any", "tree>0.5,car>0.5"], lambda r: score(r, "tree") > 0.5 or score(r, "car") > 0.5),
        (["--exclude", "tree>0.5"], lambda r: not score(r, "tree") > 0.5),
        (["--min-area", "sky=0.3"], lambda r: share(r, "sky") >= 0.3),
        (["--where", "score('sky') > 0.7 AND area('tree') = 0"], no_tree_below_the_sky),
        (["--where", "width < 10"], lambda r: False),
    ],
)  # fmt: skip
def test_conditions_keep_what_fulfils_them(
    flags: list[str], holds: Any, labels: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = [entry["image_id"] for entry in rows if holds(entry)]
    assert kept(labels, tmp_path / "kept.parquet", *flags) == expected
    assert len(expected) < PICTURES, "the condition tells nothing apart"


def test_the_table_has_scores_and_says_where_it_comes_from(
    labels: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    target = tmp_path / "kept.parquet"
    kept(labels, target, "--require", "sky>0.5", "--exclude", "car>0.5")
    table = pq.read_table(target)
    assert table.column_names == ["image_id", "uri", "width", "height", "score: sky", "score: car"]
    by_id = {entry["image_id"]: entry for entry in rows}
    for entry in table.to_pylist():
        assert entry["score: sky"] == pytest.approx(score(by_id[entry["image_id"]], "sky"))
    assert json.loads(table.schema.metadata[b"cliper"])["categories"]
    assert b"sky" in table.schema.metadata[b"cliper_filter"]
    assert duckdb.sql(f"SELECT count(*) FROM '{target}' WHERE \"score: sky\" > 0.5").fetchall() == [(len(table),)]
    assert polars.read_parquet(target).height == len(table)


def test_stats_show_scores_with_and_without_truth(
    labels: Path, rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.csv"
    present = [entry["image_id"] for entry in rows if share(entry, "tree")]
    truth.write_text("image_id,class\n" + "".join(f"{image_id},tree\n" for image_id in present))
    assert main(["--labels", str(labels), "--stats", "--classes", "tree"]) == 0
    assert "tree" in capsys.readouterr().out
    assert main(["--labels", str(labels), "--stats", "--classes", "tree", "--truth", str(truth)]) == 0
    printed = capsys.readouterr().out
    assert "precision" in printed.lower()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--require", "skyy>0.5"], "sky"),
        (["--require", "sky"], "sky"),
        (["--require", "sky>abc"], "sky>abc"),
        (["--require", "sky>60"], "60"),
        (["--min-area", "sky=1.5"], "1.5"),
        (["--where", "nothing = 1"], "nothing"),
        (["--where", "score('skyy') > 1"], "skyy"),
        (["--labels", "{tmp}"], "has no manifest.json"),
        (["--output", "{tmp}"], "is a folder"),
    ],
)
def test_wrong_requests_are_one_sentence(
    flags: list[str], message: str, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ["--labels", str(labels), "--output", str(tmp_path / "kept.parquet")]
    assert main([*right, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert message in sentence


def test_what_is_there_is_not_replaced_unasked(labels: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.parquet"
    first = kept(labels, target, "--require", "sky>0.5")
    assert main(["--labels", str(labels), "--output", str(target), "--require", "sky>0.8"]) == 2
    assert pq.read_table(target)["image_id"].to_pylist() == first
    assert kept(labels, target, "--require", "sky>0.8", "--overwrite") != first


def test_files_of_the_machine_cannot_be_read_through_where(labels: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    reading = f"EXISTS (SELECT * FROM read_csv('{tmp_path}/secret.csv'))"
    assert main(["--labels", str(labels), "--output", str(tmp_path / "k.parquet"), "--where", reading]) == 2
