"""Options of the figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cliper.baseline_settings import DEFAULT_PROXY, Harness
from jobs.common.options import MethodName, MethodOptions
from schemas.errors import RequestError

FORMATS = (".png", ".svg")
Kind = Literal["embeddings", "attention", "methods", "compensation"]
NEED_WORDS: tuple[Kind, ...] = ("methods", "compensation")


@dataclass(frozen=True)
class FigureOptions:
    """Options of the figures."""

    basic: ClassVar = (
        "figure",
        "images",
        "output",
        "vocab",
        "clip",
        "diffusion",
        "affinity",
        "points",
        "methods",
        "classes",
    )
    figure: Kind
    """embeddings (paper figure 2): principal components of CLIP's patch embeddings, and their similarity to a point.
    attention (figure 3): what CLIP and Stable Diffusion attend to from points. methods (figure 5): label maps side by
    side. compensation (figure 6): maps and masks before and after."""
    images: tuple[str, ...]
    """Image files: local paths or URLs."""
    output: tuple[Path, ...]
    """Files to write: .png, .svg or both."""
    models: MethodOptions
    points: tuple[tuple[float, float], ...] = ((0.5, 0.5),)
    """For embeddings and attention: points x y, as shares of width and height from the upper left. embeddings shows
    the first."""
    vocab: str | None = None
    """For methods and compensation: vocabulary, as for jobs/annotate.py."""
    background: str | None = None
    """Background words, as for jobs/annotate.py."""
    text_embeddings: str | None = None
    """Precomputed text embeddings (safetensors) in place of CLIP's text tower."""
    templates: str = "car"
    """Prompt templates, as for jobs/annotate.py."""
    methods: tuple[MethodName, ...] = ("clip", "maskclip", "sclip", "clearclip", "cliper")
    """For methods: which, from left to right."""
    harness: Harness = "shared"
    """How the baselines among them are run, as for jobs/evaluate.py."""
    proxy: str = DEFAULT_PROXY
    """Second model for proxyclip: timm's name of a DINO transformer, or local-dir:FOLDER."""
    classes: int = 3
    """For compensation: how many classes are shown, those with the highest scores."""

    def check(self) -> None:
        """Raises RequestError: options do not go together, or a number makes no sense."""
        for path in self.output:
            if path.suffix not in FORMATS:
                raise RequestError(f"--output {path}: figures are {' and '.join(FORMATS)} files")
            if not path.resolve().parent.is_dir():
                raise RequestError(f"--output {path}: the folder does not exist")
        if not self.points or not all(0 <= share <= 1 for point in self.points for share in point):
            raise RequestError("--points must be pairs of shares between 0 and 1")
        if self.classes < 1:
            raise RequestError(f"--classes must be at least 1, not {self.classes}")
        if self.figure == "attention" and self.models.asked().compensation in {"guided", "none"}:
            raise RequestError("--figure attention shows what a diffusion model does: give --diffusion or --affinity")
        if self.figure == "compensation" and self.models.asked().compensation == "none":
            raise RequestError("--figure compensation needs --diffusion, --affinity or --compensation guided")
