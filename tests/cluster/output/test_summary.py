"""What a run says at its end."""

from pathlib import Path

from rich.console import Console

from cliper.preprocess import InputSpec
from cluster.output.summary import count_rows, show_summary, summary_document
from schemas.rows import Status
from tests.cluster.output.test_resume import row, write_rows


def test_panoramas_on_a_coarser_grid_are_counted_and_named(tmp_path: Path) -> None:
    rows = [row("a.tar", number) for number in range(5)]
    for number, (width, height, status) in enumerate(
        [(500, 375, Status.OK), (4000, 300, Status.OK), (300, 4000, Status.OK), (4000, 300, Status.CRASHED)]
    ):
        rows[number] |= {"width": width, "height": height, "status": status}
    output = write_rows(tmp_path, rows[:2], rows[2:])
    counts = count_rows(output, output.rows_files(), InputSpec(336, 16))
    assert (counts.ok, counts.coarser) == (4, 2)
    console = Console(record=True, width=200)
    show_summary(summary_document(counts, ["cat"], 5, 1.0, 5.0, 0, ["a note"]), "here", console)
    printed = console.export_text()
    assert "2 panoramas were seen on a coarser grid than the other images" in printed
    assert "a note\n" in printed
    assert count_rows(output, output.rows_files(), InputSpec(336, 32)).coarser == 0
