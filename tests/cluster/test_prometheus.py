"""The dashboard and the alerts are well-formed and ask for series that exist; counting never gets in the way."""

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.metrics import Counter

from cluster import prometheus
from schemas.rows import Status

MONITORING = Path(__file__).parents[2] / "cluster" / "deploy" / "monitoring"
GPU_SERIES = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_gram_available",
    "ray_cliper_slow_processes_total",
}
"""Series that only nodes with GPUs have."""
RAY_SERIES = {
    "ray_actors",
    "ray_data_num_tasks_running",
    "ray_data_operator_queued_blocks",
    "ray_data_output_rows",
    "ray_node_cpu_count",
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_object_store_available_memory",
    "ray_object_store_memory",
    "ray_object_store_used_memory",
}
"""Ray's series that every node has while a job runs; the end-to-end test looks for each of them."""
OUR_SERIES = {
    f"ray_{value.info['name']}_total" for value in vars(prometheus).values() if isinstance(value, Counter)
} - GPU_SERIES
COLUMNS = 24


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return document


def panels_by_row() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel with the title of the row that it stands in."""
    row = ""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def series_of(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    x, y, width, height = (panel["gridPos"][name] for name in "xywh")
    return {(column, line) for column in range(x, x + width) for line in range(y, y + height)}


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt install prometheus)")
    run = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


class TestDashboard:
    def test_panels_have_ids_of_their_own_and_do_not_overlap(self) -> None:
        panels = dashboard()["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            assert not taken & cells(panel), panel["title"]
            taken |= cells(panel)
        assert all(0 <= column < COLUMNS for column, _ in taken)
        assert len(taken) == COLUMNS * (max(line for _, line in taken) + 1), "there is a hole"

    def test_panels_have_titles_of_their_own_units_and_queries(self) -> None:
        titles = [panel["title"] for _, panel in panels_by_row()]
        assert len(set(titles)) == len(titles)
        for row, panel in panels_by_row():
            assert row, panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]

    def test_panels_ask_the_chosen_data_source_for_the_chosen_session(self) -> None:
        variables = {variable["name"]: variable["type"] for variable in dashboard()["templating"]["list"]}
        assert variables == {"datasource": "datasource", "session": "query"}
        for _, panel in panels_by_row():
            for target in panel["targets"]:
                assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
                selectors = re.findall(r"\bray_\w+(\{[^}]*\})?", target["expr"])
                assert selectors
                assert all('SessionName=~"$session"' in selector for selector in selectors), target["expr"]

    def test_panels_that_need_a_gpu_stand_in_the_row_that_says_so(self) -> None:
        for row, panel in panels_by_row():
            used = {name for target in panel["targets"] for name in series_of(target["expr"])}
            assert used <= (GPU_SERIES if row == "GPU" else OUR_SERIES | RAY_SERIES), panel["title"]

    def test_every_metric_is_shown(self) -> None:
        shown = {
            name for _, panel in panels_by_row() for target in panel["targets"] for name in series_of(target["expr"])
        }
        assert shown == OUR_SERIES | RAY_SERIES | GPU_SERIES


class TestAlerts:
    def test_they_ask_for_known_series(self) -> None:
        for alert in alerts():
            assert series_of(alert["expr"]) <= OUR_SERIES | RAY_SERIES | GPU_SERIES, alert["alert"]

    def test_they_tell_how_bad_it_is_and_what_to_do(self) -> None:
        for alert in alerts():
            assert alert["labels"]["severity"] in {"warning", "critical"}
            assert alert["annotations"].keys() == {"summary", "description"}

    def test_each_of_them_fires_in_a_test(self) -> None:
        tested = (MONITORING / "alerts_test.yaml").read_text()
        assert all(f'{{alertname="{alert["alert"]}", ' in tested for alert in alerts())

    def test_rules_are_valid(self) -> None:
        promtool("check", "rules", "alerts.yaml")
        promtool("check", "config", "prometheus.yaml")

    def test_they_fire_when_they_should(self) -> None:
        promtool("test", "rules", "alerts_test.yaml")


def test_items_pass_through_the_timer() -> None:
    assert list(prometheus.timed_items("read", iter("abc"))) == list("abc")


def test_an_error_in_a_stage_is_not_swallowed() -> None:
    with pytest.raises(KeyError), prometheus.timed_stage("decode", 1):
        raise KeyError


def test_counting_works_without_ray(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prometheus.add_images([Status.OK, "ok", Status.EMPTY])
        prometheus.add(prometheus.READ_BYTES, 0)
    assert not caplog.records


def test_what_cannot_be_counted_is_logged_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prometheus.add(prometheus.IMAGES, 1)  # without a status
    assert [record.message for record in caplog.records] == ["a metric could not be counted"]
