"""A real Prometheus watches a real cluster on which the real job runs: every panel of the dashboard shows something."""

import json
import math
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tenacity import Retrying

from tests.cluster.test_prometheus import (
    GPU_SERIES,
    MONITORING,
    OUR_SERIES,
    RAY_SERIES,
    alerts,
    panels_by_row,
    series_of,
)
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import OutputReader, annotate, tiny_flags
from tests.support.patience import PATIENCE
from tests.support.ray_processes import ray_head, running
from tests.support.s3_server import free_ports

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus (apt install prometheus)"),
]

IMAGES, PER_SHARD = 160, 2
BAD = {"00020-bad.jpg": b"<html>404</html>", "00100-bad.jpg": b"<html>404</html>", "00100-empty.jpg": b""}
SECOND = "1s"
RATE_INTERVAL = "20s"


class Prometheus:
    """What a Prometheus server knows, through its HTTP interface."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an expression that cannot be parsed raises HTTPError."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def now(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression at this moment."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def values(self, expression: str, since: float) -> list[float]:
        """All values of all series of an expression from a time until now."""
        times = {"start": str(since), "end": str(time.time()), "step": SECOND}
        found = self.ask("query_range", query=expression, **times)["result"]
        return [float(value) for series in found for _, value in series["values"]]


@contextmanager
def prometheus(folder: Path, discovery: Path) -> Iterator[Prometheus]:
    """A server with the project's configuration that looks every second."""
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": SECOND, "evaluation_interval": SECOND}
    config["rule_files"] = [str(MONITORING / name) for name in config["rule_files"]]
    (scrape,) = config["scrape_configs"]
    scrape["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": SECOND}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    where = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"]
    with running(["prometheus", *where, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log", {}):
        yield Prometheus(f"http://127.0.0.1:{port}")


@dataclass(frozen=True)
class Watched:
    """A job that Prometheus has watched from before its start to its end, and still does.

    Attributes:
        session: Ray's name of the cluster's session.
        since: when the job was started, in seconds since 1970.
        statuses: images by status, from the rows.
        summary: the output's summary.json.
    """

    server: Prometheus
    session: str
    since: float
    statuses: Counter[str]
    summary: dict[str, Any]

    def total(self, name: str, by: str) -> dict[str, float]:
        """Sums of one of our counters over all workers, by a label."""
        found = self.server.now(f'sum by ({by}) (ray_cliper_{name}_total{{SessionName="{self.session}"}})')
        return {series["metric"].get(by, ""): float(series["value"][1]) for series in found}

    @property
    def has_gpu(self) -> bool:
        return bool(self.server.values(next(iter(GPU_SERIES)), self.since))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_diffusion: Path) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    corpus, output = write_tars(folder / "in", sample_images(IMAGES) | BAD, PER_SHARD), str(folder / "out")
    with (
        ray_head("--num-cpus=4", "--num-gpus=0") as head,
        prometheus(folder, head.folder / "prom_metrics_service_discovery.json") as server,
    ):
        for attempt in Retrying(**PATIENCE):
            with attempt:
                (node,) = server.now("ray_node_cpu_count")
        since = time.time()
        flags = tiny_flags(folder, tiny_clip, tiny_diffusion)
        job = annotate(str(corpus), output, *flags, "--address", head.address, env=head.env)
        assert job.returncode == 0, job.stderr
        reader = OutputReader(output, {})
        statuses = Counter(row["status"] for row in reader.rows().values())
        yield Watched(server, node["metric"]["SessionName"], since, statuses, reader.json("summary.json"))


def test_counts_are_those_of_the_rows(watched: Watched) -> None:
    everything, ok = watched.statuses.total(), watched.statuses["ok"]
    assert everything == IMAGES + len(BAD)
    assert ok == IMAGES
    for attempt in Retrying(**PATIENCE):
        with attempt:
            assert watched.total("images", "status") == watched.statuses
            stages = {"read": everything, "prepare": everything, "label": ok, "encode": ok}
            assert watched.total("stage_images", "stage") == stages
            assert watched.total("read_bytes", "") == {"": watched.summary["bytes_read"]}
            assert watched.total("model_batches", "") == {"": ok}, "on a CPU every image goes alone"


def test_stages_take_less_time_than_there_is(watched: Watched) -> None:
    seconds = watched.total("stage_seconds", "stage")
    assert seconds.keys() == {"read", "prepare", "label", "encode"}
    assert all(0 < value < 4 * watched.summary["seconds"] for value in seconds.values())


def test_every_series_exists(watched: Watched) -> None:
    names = set(watched.server.ask("label/__name__/values"))
    assert names >= OUR_SERIES | RAY_SERIES


@pytest.mark.parametrize(("row", "panel"), [pytest.param(*found, id=found[1]["title"]) for found in panels_by_row()])
def test_every_panel_shows_something(row: str, panel: dict[str, Any], watched: Watched) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$session", watched.session)
        assert "$" not in expression
        values = watched.server.values(expression, watched.since)
        if row != "GPU" or watched.has_gpu:
            assert any(map(math.isfinite, values)), expression


def test_alerts_look_at_series_with_these_labels(watched: Watched) -> None:
    for alert in alerts():
        selectors = [found[0] for found in re.finditer(r"\bray_\w+(\{[^}]*\})?", alert["expr"])]
        assert selectors
        for selector in selectors:
            if not series_of(selector) <= GPU_SERIES or watched.has_gpu:
                assert watched.server.values(selector, watched.since), selector


def test_prometheus_evaluates_the_alerts(watched: Watched) -> None:
    (group,) = watched.server.ask("rules")["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == {alert["alert"]: "ok" for alert in alerts()}


def test_a_job_is_running_exactly_as_long_as_it_runs(watched: Watched) -> None:
    (rule,) = [alert for alert in alerts() if alert["alert"] == "CliperNoProgress"]
    running_jobs = rule["expr"].split("> 0")[0]
    assert max(watched.server.values(running_jobs, watched.since)) == 1
    for attempt in Retrying(**PATIENCE):
        with attempt:
            assert not any(float(series["value"][1]) for series in watched.server.now(running_jobs))
