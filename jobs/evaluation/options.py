"""Options of the evaluation job."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from tyro.extras import literal_type_from_choices

from cliper.settings import DIFFUSION_AFFINITY
from cluster.corpus.layouts import BENCHMARKS, Split
from cluster.corpus.limits import Limits
from cluster.options import ClusterOptions
from jobs.common.options import MethodChoice, MethodOptions
from jobs.evaluation.ablations import NEED_DIFFUSION, Grid
from schemas.errors import RequestError

FOLDER = "folder"
Goal = Literal["miou", "f1"]
if TYPE_CHECKING:
    DatasetName = str
else:
    DatasetName = literal_type_from_choices([*BENCHMARKS, FOLDER])


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the evaluation job."""

    basic: ClassVar = (
        "dataset", "root", "images", "masks", "classes", "clip", "diffusion", "affinity", "preset", "output", "json",
        "limit", "calibrate",
    )  # fmt: skip
    dataset: DatasetName
    """Labelled data set as its makers lay it out, below --root; or folder, with --images, --masks and --classes."""
    models: MethodOptions
    root: str | None = None
    """Where the data set is: a local folder or a URL."""
    split: Split = "val"
    """Split of the data set. Published figures are about val, those of pseudo-masks (paper table 3) about train."""
    images: str | None = None
    """Folder of images."""
    masks: str | None = None
    """Folder of index masks: PNG files with the images' names."""
    classes: str | None = None
    """Class list of a folder: one class per line in the order of mask values, or "name: query one; query two"."""
    background: bool = True
    """In a folder's masks 0 is background and 1 the first class. --no-background: 0 is the first class. --ignore 0 255:
    0 is no class and 1 the first one."""
    ignore: tuple[int, ...] = (255,)
    """Values in a folder's masks of pixels that do not count."""
    choice: MethodChoice = field(default_factory=MethodChoice)
    examples: str | None = None
    """Folder with some labelled images of classes, as for cliper annotate. They should not be among the images."""
    text_embeddings: str | None = None
    """Ready text embeddings (safetensors) in place of CLIP's text tower."""
    templates: str | None = None
    """Prompt templates: car, openai_imagenet_80, maskclip_85 or a file (default: the published ones)."""
    given_labels: bool = False
    """Tell the method which classes each image shows: figures of pseudo-masks (paper table 3). Scores do not matter
    then, and --calibrate fits background thresholds only."""
    grid: tuple[Grid, ...] = ()
    """Evaluate every row of these ablation tables of the paper (default: none)."""
    calibrate: Path | None = None
    """Fit on half of the images, try the result on the other half, and write a settings file for --settings if it is
    better. Preset open: probabilities of presence. Other presets: thresholds of every class."""
    calibrate_for: Goal = "miou"
    """The figure that thresholds of classes should raise."""
    output: str = "evaluations"
    """Folder or prefix for the rows that figures are summed from. Each request has its own folder there, in which the
    same command continues."""
    json: Path | None = None
    """File for the figures."""
    markdown: Path | None = None
    """File for the figures as a Markdown table."""
    limit: int | None = None
    """Evaluate only this many images, the first by name."""
    limits: Limits = field(default_factory=Limits)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    max_failed_fraction: float = 0.0
    """The job fails at the end if more than this share of the images could not be evaluated."""

    def check(self) -> None:
        """Raises RequestError: options do not go together, or a number makes no sense."""
        self.cluster.check()
        self.limits.check()
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")
        if not 0 <= self.max_failed_fraction <= 1:
            raise RequestError(f"--max-failed-fraction must be between 0 and 1, not {self.max_failed_fraction}")
        if self.choice.baseline and (self.grid or self.calibrate or self.examples is not None):
            raise RequestError(f"--grid, --calibrate and --examples are for --method cliper, not {self.choice.method}")
        if self.models.skip_absent:
            raise RequestError("--skip-absent leaves scores out that an evaluation needs: it is for jobs/annotate.py")
        if self.grid and self.models.affinity != DIFFUSION_AFFINITY:
            raise RequestError("--grid has the paper's tables: they are about --affinity diffusion")
        if self.models.diffusion == "none" and not NEED_DIFFUSION.isdisjoint(self.grid):
            raise RequestError(f"--grid {' and '.join(sorted(NEED_DIFFUSION))} compare compensations: give --diffusion")
        if self.given_labels and self.calibrate and (self.models.preset == "open" or self.calibrate_for == "f1"):
            raise RequestError(
                "--given-labels says what is present: --calibrate can only fit --calibrate-for miou then"
            )
        if self.grid and self.calibrate:
            raise RequestError("--grid and --calibrate do not go together: give one of them")
        if self.dataset == FOLDER and self.split != "val":
            raise RequestError(f"--split is for the benchmarks; --dataset {FOLDER} has --images and --masks")
        for path in (self.json, self.markdown, self.calibrate):
            if path is not None and not path.resolve().parent.is_dir():
                raise RequestError(f"{path}: the folder does not exist")
