"""Ray's cluster launcher accepts `ray_cluster.yaml`, and the file says what it should.

The files for other clouds say the same.
"""

import copy
import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.files import ROOT, search, uv_version

OTHERS = ["examples/cluster/gcp.yaml", "examples/cluster/azure.yaml"]


@cache
def launcher(file: str = "ray_cluster.yaml") -> dict[str, Any]:
    """The configuration with Ray's defaults, made and checked as `ray up` does it before it talks to the cloud."""
    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / file).read_text()))
    validate_config(config)
    return config


def test_launcher_accepts_the_file() -> None:
    config = launcher()
    workers = [group for name, group in config["available_node_types"].items() if name != config["head_node_type"]]
    assert [group["min_workers"] for group in workers] == [0, 0]
    assert sum(group["max_workers"] for group in workers) == config["max_workers"]
    assert all(group["resources"]["GPU"] == 1 for group in workers)


def test_head_offers_nothing_to_tasks() -> None:
    head = launcher()["available_node_types"][launcher()["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_spot_comes_first_and_differs_in_nothing_else() -> None:
    groups = copy.deepcopy(launcher()["available_node_types"])
    spot, fall_back = groups["gpu-spot"], groups["gpu-on-demand"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == fall_back["node_config"]
    assert spot["priority"] > fall_back.get("priority", 0)


def test_nodes_have_roles_disk_and_session_tokens() -> None:
    for group in launcher()["available_node_types"].values():
        machine = group["node_config"]
        assert machine["IamInstanceProfile"]["Name"]
        assert machine["MetadataOptions"] == {"HttpTokens": "required"}
        assert machine["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 100


def test_nodes_install_the_lock_and_nothing_else() -> None:
    config = launcher()
    assert config["file_mounts"]["/home/ubuntu/requirements.lock"] == "requirements.lock"
    installs = [command for command in config["worker_setup_commands"] if "pip" in command]
    assert len(installs) == 2
    assert f"uv=={uv_version()}" in installs[0]
    assert {"sync", "--require-hashes", "~/requirements.lock"} <= set(installs[1].split())
    assert config["head_setup_commands"] == config["worker_setup_commands"]
    assert search(r"^boto3==(\S+)", ROOT / "requirements.lock"), "the head's autoscaler needs it"


def test_nodes_ask_for_a_token_and_have_it() -> None:
    config = launcher()
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    (profile,) = [command for command in config["setup_commands"] if "/etc/profile.d/" in command]
    assert {"RAY_AUTH_MODE=token'", "HF_HOME=/opt/dlami/nvme/huggingface"} <= set(profile.split())
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert "--dashboard-host" not in " ".join(starts)


def groups(config: dict[str, Any]) -> dict[str, Any]:
    """The groups of nodes without what only a cloud understands."""
    return {
        name: {key: value for key, value in group.items() if key != "node_config"}
        for name, group in config["available_node_types"].items()
    }


@pytest.mark.parametrize("file", OTHERS)
def test_other_clouds_differ_in_what_only_a_cloud_understands(file: str) -> None:
    ours, other = launcher(), launcher(file)
    assert groups(other) == groups(ours)
    cloud = {"provider", "available_node_types"}
    commands = {"setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"}
    assert {key for key in ours if ours[key] != other[key]} <= cloud | commands
    models, _, *shared = ours["setup_commands"]
    other_models, _, *other_shared, storage = other["setup_commands"]
    assert other_shared == shared
    assert other_models.split("/")[-1] == models.split("/")[-1] == "huggingface"
    assert re.search(r"uv pip install .* --constraint ~/requirements.lock (gcsfs|adlfs) ", storage)
    (profile,) = [command for command in other["setup_commands"] if "/etc/profile.d/" in command]
    assert re.search(r"HF_HOME=/opt/huggingface RAY_AUTH_MODE=token\b", profile)


def test_spot_comes_first_on_other_clouds_too() -> None:
    google, azure = (launcher(file)["available_node_types"] for file in OTHERS)
    spot, fall_back = (dict(google[name]["node_config"]) for name in ("gpu-spot", "gpu-on-demand"))
    assert spot.pop("scheduling")["provisioningModel"] == "SPOT"
    assert "provisioningModel" not in fall_back.pop("scheduling")
    assert spot == fall_back
    spot, fall_back = (
        dict(azure[name]["node_config"]["azure_arm_parameters"]) for name in ("gpu-spot", "gpu-on-demand")
    )
    assert spot.pop("priority") == "Spot"
    assert spot == fall_back
    assert "priority" not in azure["head"]["node_config"]["azure_arm_parameters"]


@pytest.mark.parametrize("file", ["ray_cluster.yaml", *OTHERS])
@pytest.mark.parametrize("kind", ["head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_commands_are_shell(kind: str, file: str) -> None:
    for command in launcher(file)[kind]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
