"""Options of the labelling job."""

import os
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from cluster.corpus.columns import Columns
from cluster.corpus.limits import Limits
from cluster.corpus.sources import CorpusFormat
from cluster.options import ClusterOptions
from jobs.common.options import MethodChoice, MethodOptions, PlanOptions
from jobs.report import MAX_IMAGES
from schemas.errors import RequestError

DAY_S = 86_400


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of the annotation job."""

    basic: ClassVar = (
        "vocab", "input", "output", "trial", "clip", "diffusion", "affinity", "background", "examples", "keep_columns",
        "skip_absent", "actors", "gpus_per_actor", "limit", "retry_failed", "overwrite", "plan",
    )  # fmt: skip
    input: str = field(default_factory=lambda: os.environ.get("CLIPER_INPUT", ""))
    """Folder, prefix, file or pattern with images: a local path or a URL such as s3://bucket/{00000..00099}.tar;
    @LIST.txt for a file with one of these on each line (default: CLIPER_INPUT)."""
    output: str = field(default_factory=lambda: os.environ.get("CLIPER_OUTPUT", ""))
    """Folder or prefix for the results. The same command resumes there (default: CLIPER_OUTPUT)."""
    models: MethodOptions = field(default_factory=lambda: MethodOptions(preset="open"))
    choice: MethodChoice = field(default_factory=MethodChoice)
    vocab: str | None = None
    """Vocabulary: one class per line, or "name: query one; query two"."""
    background: str | None = None
    """Background words: a file in the same format, +FILE to add its words to the packaged ones, or none (default: some
    hundred common things with preset open, else the 25 words published for PASCAL VOC). With preset open, words that
    mean the same as a class are left out."""
    examples: str | None = None
    """Folder with some labelled images of classes, which count beside the words: images/ with masks/ and classes.txt
    (index masks, 0 for no class, 1 for the first line), or images/ with a COCO file annotations.json. A line of the
    vocabulary with nothing after its colon is a class that only examples show."""
    text_embeddings: str | None = None
    """Precomputed text embeddings (safetensors), used instead of CLIP's text tower."""
    templates: str = "car"
    """Prompt templates: car (15), openai_imagenet_80, maskclip_85, or a file with one template per line, {} for the
    class."""
    format: Literal["auto"] | CorpusFormat = "auto"
    """Format of the input: tar shards, Parquet tables with an image column, or image files."""
    image_column: str | None = None
    """Column with the images (default: image, bytes, jpg, jpeg, png, img, content, or the only one with bytes). Of tar
    shards and folders the ending of the images' names, what follows the first dot: jpg takes 7.jpg and passes over
    7.mask.png."""
    keep_columns: str | None = None
    """Columns of the input that the rows get, with commas between them: of tables with their types; of tar shards and
    folders the siblings json, txt and cls of an image (7.json beside 7.jpg), and keys of json, as text."""
    allowed_column: str | None = None
    """Column of the input with what is known to be in each image: names of classes, a list or text with ; between them.
    Only these classes can win there, whatever their scores. Where it is null, all can."""
    relabel: str | None = None
    """Label only the images that this file lists, one image_id on each line, as a report's marks are. The output is one
    of its own, so that other words can be compared."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    limit: int | None = None
    """Maximum number of images to label, in the order of their names."""
    trial: Annotated[int | None, tyro.conf.arg(name="try")] = None
    """Label only about this many images, spread over the input, into OUTPUT-try, and write OUTPUT-try/report.html: a
    look at what becomes of your words before a long run."""
    limits: Limits = field(default_factory=Limits)
    plan: PlanOptions = field(default_factory=PlanOptions)
    max_failed_fraction: float = 0.1
    """The job fails at the end if more than this share of the images failed. What is written stays."""
    follow: float | None = None
    """Do not end: look for new and changed files of the input every so many seconds, and label them."""
    retry_failed: bool = False
    """Retry transient failures: missing, forbidden, timed out, out of memory, crashed."""
    overwrite: bool = False
    """Delete what an earlier run wrote to the output and start over."""

    @property
    def columns(self) -> Columns:
        """What is read of the input."""
        names = tuple(name.strip() for name in self.keep_columns.split(",")) if self.keep_columns is not None else ()
        return Columns(self.image_column, names, self.allowed_column)

    def check(self) -> None:
        """Raises RequestError: a place or name is missing, or a number makes no sense."""
        for name in ("input", "output"):
            if not getattr(self, name):
                raise RequestError(f"--{name} is missing: give it, or set CLIPER_{name.upper()}")
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")
        if self.trial is not None and not 1 <= self.trial <= MAX_IMAGES:
            raise RequestError(f"--try must be between 1 and {MAX_IMAGES}, not {self.trial}")
        if self.trial is not None and self.limit is not None:
            raise RequestError("--try and --limit do not go together: give one of them")
        if self.relabel is not None and not (self.limit is self.trial is self.follow is None):
            raise RequestError("--relabel names the images: leave out --limit, --try and --follow")
        columns = self.columns
        if not all(name for name in (*columns.keep, columns.image, columns.tags) if name is not None):
            raise RequestError("--image-column, --keep-columns and --allowed-column need names: one of them is empty")
        if self.follow is not None and not 1 <= self.follow <= DAY_S:
            raise RequestError(f"--follow must be between 1 and {DAY_S} seconds, not {self.follow:g}")
        if self.follow is not None and (self.trial is not None or self.plan.plan):
            raise RequestError("--follow labels without end: leave out --try and --plan")
        self.cluster.check()
        self.limits.check()
        self.plan.check()
        if self.examples is not None and self.choice.baseline:
            raise RequestError(f"--examples is for --method cliper, not {self.choice.method}")
        if self.plan.plan and self.choice.baseline:
            raise RequestError(f"--plan is for --method cliper: the speed of {self.choice.method} is not measured")
        if not 0 <= self.max_failed_fraction <= 1:
            raise RequestError(f"--max-failed-fraction must be between 0 and 1, not {self.max_failed_fraction}")
