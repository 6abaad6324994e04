"""The paper's figures: what the panels show, the files, and wrong requests."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from cliper.loading import load_vision_tower
from cliper.models import find_clip
from cliper.preprocess import InputSpec
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.figure import main
from jobs.figures import drawing
from jobs.figures.panels import (
    Panel,
    Point,
    attended_by_heads,
    block_outputs,
    embeddings,
    normalised,
    principal_colours,
    without_peak,
)
from tests.cliper.test_pipeline import CPU
from tests.support.jobs import refusal

DEMO = ["--clip", "demo", "--diffusion", "demo", "--preset", "release"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    for seed in (3, 4):
        Image.fromarray(draw(seed, 60, 80).image).save(folder / f"{seed}.png")
    (folder / "vocab.txt").write_text("\n".join(NAMES))
    (folder / "text.png").write_text("no image")
    return folder


def make(files: Path, *flags: str) -> np.ndarray:
    """Draw a figure of two images; returns the PNG's pixels. The SVG has been parsed."""
    images = ["--images", str(files / "3.png"), str(files / "4.png")]
    output = ["--output", str(files / "figure.png"), str(files / "figure.svg")]
    assert main([*images, *output, *DEMO, *flags]) == 0
    assert ElementTree.parse(files / "figure.svg").getroot().tag.endswith("svg")
    with Image.open(files / "figure.png") as image:
        return np.asarray(image.convert("RGB"))


def inches(pixels: np.ndarray) -> tuple[float, float]:
    height, width, _ = pixels.shape
    return height / drawing.RESOLUTION_DPI, width / drawing.RESOLUTION_DPI


@pytest.mark.parametrize(
    ("flags", "rows", "columns"),
    [
        (["--figure", "embeddings"], 4, 6),
        (["--figure", "attention", "--points", "0.2", "0.5", "0.9", "1"], 4, 5),
        (["--figure", "compensation", "--vocab", "{files}/vocab.txt", "--classes", "2"], 4, 5),
    ],
)
def test_figures_of_two_images(flags: list[str], rows: int, columns: int, files: Path) -> None:
    pixels = make(files, *(flag.replace("{files}", str(files)) for flag in flags))
    height, width = inches(pixels)
    assert width == pytest.approx(columns * drawing.PANEL_WIDTH_IN, abs=0.01)
    assert height == pytest.approx(rows * (drawing.PANEL_WIDTH_IN * 60 / 80 + drawing.TITLE_HEIGHT_IN), abs=0.01)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_label_maps_of_methods_side_by_side(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vocab", str(files / "vocab.txt"), "--background", "none"]
    pixels = make(files, "--figure", "methods", *words, "--methods", "cliper", "sclip", "--logit-scale", "80")
    assert inches(pixels)[1] == pytest.approx(3 * drawing.PANEL_WIDTH_IN, abs=0.01)
    first_colour = np.round(255 * np.array(drawing.to_rgb(drawing.class_colours(1)[0]))).astype(int)
    assert (pixels == first_colour).all(axis=-1).mean() > 0.01, "the first class that occurs has its colour"
    assert f"Written: {files / 'figure.svg'}" in capsys.readouterr().out


def test_blocks_are_those_of_open_clip(tiny_clip: Path) -> None:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32)
    side = 16 * tower.model.grid_size[0]
    image = Image.fromarray(draw(1, 60, 80).image).resize((side, side))
    prepared = InputSpec(side, 16).prepare(image, 0)
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda *call: seen.append(call[2])) for block in tower.model.transformer.resblocks
    ]
    with torch.inference_mode():
        tower.model(normalised(tower, prepared))
        for hook in hooks:
            hook.remove()
        ours = block_outputs(tower, prepared)
    assert len(ours) == len(seen) > 2
    for mine, theirs in zip(ours, seen, strict=True):
        assert torch.allclose(mine, theirs[0, 1:], atol=1e-5)


def test_similarity_is_highest_at_the_point(tiny_clip: Path) -> None:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32)
    image = Image.fromarray(draw(1, 60, 80).image)
    with torch.inference_mode():
        above, below = embeddings(tower, image, InputSpec(112, 16).prepare(image, 0), Point(0.95, 0.1))
    assert len(above) == len(below) <= 6
    for panel in below[1:]:
        assert np.unravel_index(panel.pixels.argmax(), panel.pixels.shape) == (0, 8)
        assert panel.pixels.max() == pytest.approx(1, abs=1e-5)


def test_principal_colours_are_the_directions_of_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    strengths = torch.tensor([25.0, 5.0, 1.0, 0.01])
    basis = torch.linalg.qr(torch.randn(6, 4, generator=generator))[0]
    values = torch.randn(2000, 4, generator=generator) * strengths
    colours = principal_colours(values @ basis.T + 7)
    assert colours.min(axis=0).tolist() == [0, 0, 0]
    assert colours.max(axis=0).tolist() == [255, 255, 255]
    for channel in range(3):
        correlation = np.corrcoef(colours[:, channel], values[:, channel].numpy())[0, 1]
        assert abs(correlation) > 0.98


def test_the_product_of_heads_is_the_product_of_their_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [(torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)) for _ in range(3)]
    matrices = [torch.softmax(query @ key.T / 2, dim=-1) for query, key in heads]
    mean, product = attended_by_heads(heads, 5)
    assert torch.allclose(mean, sum(matrices)[5] / 3, atol=1e-6)
    assert torch.allclose(product, (matrices[0] @ matrices[1] @ matrices[2])[5], atol=1e-6)


def test_points_and_peaks() -> None:
    assert [Point(x, y).cell((3, 4)) for x, y in [(0, 0), (0.3, 0.5), (1, 1), (0.99, 0)]] == [0, 5, 11, 3]
    weights = torch.arange(101.0)
    weights[100] = 1e6
    assert without_peak(weights).max() == 99


def test_formulas_in_names_are_text(tmp_path: Path) -> None:
    labels = np.array([[0, 1]], np.int32)
    figure = drawing.draw([[Panel("$x", np.zeros((4, 4, 3), np.uint8)), Panel(r"$\frac$", labels)]], [r"$\nonsense$"])
    drawing.save(figure, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--output", "{tmp}/figure.jpg"], "--output {tmp}/figure.jpg: figures are .png and .svg files"),
        (["--output", "{tmp}/no/figure.png"], "the folder does not exist"),
        (["--points", "0.5", "1.5"], "--points must be pairs of shares between 0 and 1"),
        (["--images", "{tmp}/text.png"], "--images {tmp}/text.png: the bytes are no image"),
        (["--images", "{tmp}/none.png"], "--images {tmp}/none.png cannot be read: it does not exist"),
        (
            ["--figure", "attention", "--diffusion", "none"],
            "--figure attention shows what a diffusion model does: give --diffusion or --affinity",
        ),
        (
            ["--figure", "compensation", "--vocab", "{tmp}/vocab.txt", "--diffusion", "none"],
            "--figure compensation needs --diffusion, --affinity or --compensation guided",
        ),
        (["--figure", "methods"], "--vocab is missing"),
        (["--figure", "compensation", "--vocab", "{tmp}/vocab.txt", "--classes", "0"], "--classes must be at least 1"),
        (["--clip", "local-dir:{tmp}"], "has no file open_clip_config.json"),
    ],
)
def test_wrong_requests(changes: list[str], message: str, files: Path) -> None:
    right = ["--figure", "embeddings", "--images", str(files / "3.png"), "--output", str(files / "figure.png"), *DEMO]
    sentence = refusal(main, *right, *(change.replace("{tmp}", str(files)) for change in changes))
    assert message.replace("{tmp}", str(files)) in sentence
