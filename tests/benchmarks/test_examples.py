"""The benchmark of examples, on a few drawn images."""

import json
from pathlib import Path

from benchmarks.examples import ExamplesOptions, main
from demo.world.__main__ import main as draw_world


def test_figures_of_drawn_images(tmp_path: Path) -> None:
    world = tmp_path / "world"
    draw_world(world, seed=20_000, images=10, height_px=96, width_px=128)
    options = ExamplesOptions(
        images=str(world / "images"), masks=str(world / "masks"), classes=str(world / "classes.txt"),
        clip="demo", diffusion="none", counts=(1, 2), draws=2, alone=1,
        json=tmp_path / "figures.json", figure=tmp_path / "figures.svg",
    )  # fmt: skip
    main(options)
    results = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["preset"], row["examples"]) for row in results["with_words"]] == [
        ("open", 1), ("release", 1), ("open", 2), ("release", 2),
    ]  # fmt: skip
    assert {row["draws"] for row in results["with_words"]} == {2}
    assert sorted(row["class"] for row in results["alone"]) == sorted(results["classes"])
    assert {row["examples"] for row in results["alone"]} == {1}
    assert (tmp_path / "figures.svg").read_text().startswith("<?xml")
