"""The page docs/gpu.md and its pictures: what is predicted, and what was measured beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.counts import BATCH, CASES, CLASSES, IMAGE_HW, TABLE
from benchmarks.roofline import H100, CountedCase, Rates, floors
from benchmarks.speed import STAGES, Combination, Row, counted_case, percent
from benchmarks.variants import Variant
from cliper.settings import Compensation

COLOURS = ("#bbbbbb", "#777777", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#dddddd")
"""Of the stages: can be told apart without seeing colours as most people do."""
MARKERS = "osD^"
COUNTED = ("tflop_an_image", "gb_an_image")
INTRODUCTION = """# Measured on a GPU

`make gpu-report` (`python -m benchmarks.gpu_report`) writes this page and its pictures in less than ten minutes. The
rows behind it go to `benchmarks/results.csv`. The models have their published sizes and random weights.
"""
NOTHING = """
**Nothing was measured on a GPU yet.** What follows is predicted from counts. Running `make gpu-report` on a machine
with a GPU fills this page in.
"""
PREDICTION = """
Predicted is the time of whichever takes longer, a stage's arithmetic or its bytes, at rates assumed for an H100 before
anything was measured: {tflops:.0f} TFLOP/s and {tb:.1f} TB/s. Both are counted by running the labelling path on tensors
without content (`python -m benchmarks.counts`, kept in `benchmarks/counts.json`). The counts are those of uncompiled
code, and what a kernel finds in a cache counts as moved. So compiled code can be faster than predicted. Starting
kernels, exponentials, copies from the host and waiting for it are not in the prediction. `between` is what belongs to
no stage.
"""
STAGE_COLUMNS = """
`resize` is done by the host, in a job by tasks of its own. The floor is the prediction at the rates measured on this
device. The last three columns are the shares of the measured time that the floor, the arithmetic alone and the bytes
alone explain.
"""
AGREEMENT = """
Share of the label pixels of drawn images, labelled by the demo models, that are those of the literal transcription in
fp32:

"""
COMBINATION_COLUMNS = """
One batch after the other from decoded images to runs of the label map: "ms" and "of floor". Two threads, as in an
actor: "actor, images/s" with images that are prepared already, and "end to end, images/s" with JPEG files that these
threads decode and resize. "Ratio" compares with the literal transcription of the method on the same device, which takes
one image at a time. Memory is the most that was in use while labelling, models included; the prediction is for one
batch at a time.
"""


@dataclass
class Findings:
    """What the page tells.

    Attributes:
        counts: by case what `benchmarks.counts.count` found.
        note: a sentence about the page as a whole; empty for a real report.
        facts: about the machine, by name.
        problems: what is wrong with the kernels; None if they were not checked.
        rates: of the device; None if they were not measured.
        rows: of `benchmarks.speed.measure`, completed.
        agreement: by compensation and variant the share of labels that are those of fp32.
        missing: by name what was not measured, and why.
    """

    counts: Mapping[CountedCase, Mapping[str, Any]]
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] | None = None
    rates: Rates | None = None
    rows: list[Row] = field(default_factory=list)
    agreement: Mapping[Compensation, Mapping[Variant, float]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def combinations(self) -> list[Combination]:
        """What was measured, in order."""
        return list(dict.fromkeys(map(Combination.of, self.rows)))

    def by_stage(self, combination: Combination) -> dict[str, Row]:
        """The rows of a combination by stage."""
        return {row["stage"]: row for row in self.rows if Combination.of(row) == combination}

    def stage_cases(self) -> list[tuple[CountedCase, Combination | None]]:
        """The first case of every CLIP model and compensation, and the combination that was measured of it."""
        fast = [row for row in self.rows if row["variant"] == "fast"]
        measured = {counted_case(of, row["precision"]): of for row in fast for of in [Combination.of(row)]}
        first: dict[tuple[str, str], CountedCase] = {}
        for case in self.counts:
            first.setdefault((case.clip, case.compensation), case)
        return [(case, measured.get(case)) for case in first.values()]


def kept_counts() -> dict[CountedCase, dict[str, Any]]:
    """The counts in `benchmarks/counts.json`."""
    table = json.loads(TABLE.read_text())
    return {
        CountedCase(clip, compensation, BATCH, CLASSES, IMAGE_HW, "fp16"): table[f"{clip}, {compensation}"]
        for clip, compensation in CASES
    }


def write_page(findings: Findings, folder: Path) -> Path:
    """Write ``gpu.md`` and its pictures into a folder, and return the page's path."""
    draw_stages(findings, folder / "gpu-stages.svg")
    if findings.rows:
        draw_batches(findings, folder / "gpu-batches.svg")
    page = folder / "gpu.md"
    page.write_text("".join(paragraphs(findings)), encoding="utf-8")
    return page


def paragraphs(findings: Findings) -> Iterable[str]:
    """The page, piece by piece."""
    yield INTRODUCTION
    if findings.note:
        yield f"\n**{findings.note}**\n"
    if not findings.rows:
        yield NOTHING
    if findings.facts:
        yield "\n## Machine\n\n" + table(("", ""), findings.facts.items())
    if findings.rates:
        yield (
            f"\nA large product reaches {findings.rates.flop_per_s / 1e12:.3g} TFLOP/s, a large copy "
            f"{findings.rates.bytes_per_s / 1e12:.3g} TB/s (read and written).\n"
        )
    if findings.facts:
        yield "\n## Kernels and labels\n\n" + self_check(findings.problems)
    if findings.agreement:
        yield AGREEMENT
        shares = (
            (of, *(f"{100 * found[variant]:.2f} %" for variant in ("fast", "literal")))
            for of, found in findings.agreement.items()
        )
        yield table(("compensation", "package", "literal transcription"), shares)
    yield "\n## Time of an image by stage\n" + PREDICTION.format(
        tflops=H100.flop_per_s / 1e12, tb=H100.bytes_per_s / 1e12
    )
    yield STAGE_COLUMNS if findings.rows else ""
    yield "\n![Stages](gpu-stages.svg)\n"
    for case, measured in findings.stage_cases():
        yield f"\n### {model_name(case)}\n\nBatch {case.batch_size}, {case.image_hw[1]} x {case.image_hw[0]} px, "
        yield f"{case.classes} classes.\n\n" + stage_table(findings, case, measured)
    if findings.rows:
        yield "\n## Throughput and memory\n" + COMBINATION_COLUMNS + "\n![Batch sizes](gpu-batches.svg)\n\n"
        yield combination_table(findings)
    if findings.missing:
        yield "\n## Not measured\n\n" + "".join(f"* {name}: {why}\n" for name, why in findings.missing.items())


def self_check(problems: Sequence[str] | None) -> str:
    if problems is None:
        return "The kernels were not compared with their plain versions.\n"
    if problems:
        return "**Kernels are not used here:**\n" + "".join(f"* {problem}\n" for problem in problems)
    return "The kernels agree with their plain versions (`cliper.selfcheck`).\n"


def stage_table(findings: Findings, case: CountedCase, measured: Combination | None) -> str:
    """A line for every stage of a case: counts and prediction, and what was measured."""
    counts = findings.counts[case]
    predicted = floors(counts, H100)
    rows = findings.by_stage(measured) if measured else {}
    header = ["stage", "TFLOP", "GB moved", "predicted, ms"]
    if measured:
        header += ["floor, ms", "measured, ms", "of floor", "arithmetic", "bytes"]
    lines = []
    for stage in (*STAGES, "total"):
        of, row = counts["stages"].get(stage, {}), rows.get(stage)
        if stage == "total":
            of = {name: sum(one[name] for one in counts["stages"].values()) for name in COUNTED}
        if not of and not row:
            continue
        line = [stage, *(f"{of[name]:.3f}" if of else "" for name in COUNTED)]
        line.append(f"{predicted[stage].both:.2f}" if of else "")
        if measured:
            line += ["" if row is None or row["floor_ms"] is None else f"{row['floor_ms']:.2f}"]
            line += [f"{row['ms_per_image']:.2f}" if row else ""]
            line += [percent(row[f"share_of_{of}"]) if row else "" for of in ("floor", "arithmetic", "bytes")]
        lines.append(line)
    return table(header, lines)


def combination_table(findings: Findings) -> str:
    """A line for every combination."""
    header = [
        "CLIP", "compensation", "variant", "image", "classes", "batch", "ms", "of floor", "ratio", "actor, images/s",
        "end to end, images/s", "peak GB", "predicted GB",
    ]  # fmt: skip
    literal = {of[1:5]: findings.by_stage(of)["total"] for of in findings.combinations if of.variant == "literal"}
    lines = []
    for of in findings.combinations:
        rows = findings.by_stage(of)
        total, slow = rows["total"], literal.get(of[1:5])
        threads = (f"{rows[name]['images_per_second']:.1f}" if name in rows else "" for name in ("actor", "end to end"))
        counts = findings.counts.get(counted_case(of, total["precision"])) if of.variant == "fast" else None
        lines.append(
            [
                of.clip, of.compensation, of.variant, of.image_size, of.classes, of.batch_size,
                f"{total['ms_per_image']:.2f}", percent(total["share_of_floor"]),
                f"{slow['ms_per_image'] / total['ms_per_image']:.1f}" if slow else "", *threads,
                f"{total['peak_memory_gb']:.2f}", counts["peak_gb"] if counts else "",
            ]
        )  # fmt: skip
    return table(header, lines)


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def model_name(of: CountedCase | Combination) -> str:
    return f"{of.clip}, compensation {of.compensation}"


def sentence(of: Combination) -> str:
    """A combination in words."""
    return f"{model_name(of)}, variant {of.variant}, {of.image_size} px, {of.classes} classes, batch {of.batch_size}"


def draw_stages(findings: Findings, path: Path) -> None:
    """Stacked bars of the stages' milliseconds: predicted, and what was measured below it."""
    bars: list[tuple[str, float, dict[str, float]]] = []
    place = 0.0
    for case, measured in findings.stage_cases():
        predicted = {stage: floor.both for stage, floor in floors(findings.counts[case], H100).items()}
        place += 1.2
        bars.append((f"{model_name(case)}\npredicted, H100", place, predicted))
        if measured:
            rows = findings.by_stage(measured)
            place += 0.8
            bars.append(("measured", place, {stage: row["ms_per_image"] for stage, row in rows.items()}))
    figure = Figure((9, 1.3 + 0.45 * len(bars)), layout="constrained")
    axis = figure.subplots()
    for number, (_, place, of) in enumerate(bars):
        left = 0.0
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            axis.barh(place, of.get(stage, 0.0), 0.7, left, color=colour, label=None if number else stage)
            left += of.get(stage, 0.0)
        axis.text(left, place, f" {left:.1f}", va="center")
    axis.set(xlabel="milliseconds per image", yticks=[place for _, place, _ in bars])
    axis.set_yticklabels([name for name, *_ in bars])
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False, columnspacing=1.2, handlelength=1)
    save(figure, path)


def draw_batches(findings: Findings, path: Path) -> None:
    """Images per second and memory over the batch size, for images and vocabulary of the first combination."""
    first = findings.combinations[0]
    alike = [of for of in findings.combinations if (of.variant, *of[3:5]) == ("fast", *first[3:5])]
    models: dict[tuple[str, Compensation], list[Combination]] = {}
    for of in sorted(alike, key=lambda of: of.batch_size):
        models.setdefault((of.clip, of.compensation), []).append(of)
    figure = Figure((10, 4.2), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for (model, marker), colour in zip(zip(models.values(), MARKERS, strict=False), COLOURS[2:], strict=False):
        rows = [findings.by_stage(of) for of in model]
        sizes, style = [of.batch_size for of in model], {"color": colour, "marker": marker}
        actor, whole = ([row[name]["images_per_second"] for row in rows] for name in ("actor", "end to end"))
        speed.plot(sizes, actor, label=model_name(model[0]), **style)
        speed.plot(sizes, whole, linestyle="--", **style)
        memory.plot(sizes, [row["total"]["peak_memory_gb"] for row in rows], **style)
    speed.set(title="Two threads; dashed: with decoding and resizing in them", ylabel="images per second")
    memory.set(title="Memory while labelling, models included", ylabel="GB")
    for axis in (speed, memory):
        axis.set_xscale("log", base=2)
        sizes = sorted({of.batch_size for of in alike})
        axis.set(xlabel="images per batch", xticks=sizes, xticklabels=sizes)
        axis.set_ylim(bottom=0)
        axis.minorticks_off()
        axis.grid(color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As an SVG file that is the same whenever the figures are."""
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
