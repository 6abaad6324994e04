"""Put the files in `examples/cluster` through the programs that read them, without a cloud.

It needs ``requirements.txt`` beside it, and nothing of this project: ``python tests/clouds/check.py``. SkyPilot loads
its task; parliament reads the policies; moto stands in for AWS while Ray starts and ends machines, and the policies
must allow what Ray called; Google's machines must fit Google's own schema, and Azure's the template that Ray sends.
"""

import copy
import json
import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/cluster"
PLACES = {
    "YOUR-ACCOUNT": "123456789012",
    "YOUR-REGION": "us-west-2",
    "YOUR-INPUT-BUCKET": "photos",
    "YOUR-OUTPUT-BUCKET": "results",
}
NOT_CALLED = {"iam:PassRole", "ssm:GetParameters"}
"""AWS asks for these when a machine starts with a role, from an image that has a parameter's name."""


def filled(path: Path) -> str:
    text = path.read_text()
    for place, value in PLACES.items():
        text = text.replace(place, value)
    return text


def launcher(path: Path) -> dict[str, Any]:
    """A launcher's file with Ray's defaults."""
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(filled(path)))
    validate_config(config)
    return config


def check_sky() -> None:
    import sky

    task = sky.Task.from_yaml(str(EXAMPLES / "sky.yaml"))
    assert task.num_nodes == 2
    assert {"CLIPER_INPUT", "CLIPER_OUTPUT"} <= task.envs.keys()
    for resources in task.resources:
        assert resources.use_spot
        assert list(resources.accelerators.values()) == [1]
    for script in (task.setup, task.run):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def check_policies() -> None:
    import parliament

    for path in sorted(EXAMPLES.glob("rights/aws-*.json")):
        if path.name == "aws-trust.json":  # parliament reads policies of identities only
            continue
        findings = parliament.analyze_policy_string(filled(path)).findings
        assert not findings, (path, findings)


def actions_in(*names: str) -> set[str]:
    found = set()
    for name in names:
        for statement in json.loads(filled(EXAMPLES / "rights" / name))["Statement"]:
            actions = statement["Action"]
            found |= {actions} if isinstance(actions, str) else set(actions)
    return found


def check_aws_rights() -> None:
    """Ray makes a cluster, starts a head and a spot worker, and ends them. The policies name what it called."""
    import boto3
    from botocore.client import BaseClient
    from moto import mock_aws

    called: set[str] = set()
    call = BaseClient._make_api_call

    def note(client: BaseClient, name: str, arguments: dict[str, Any]) -> Any:
        called.add(f"{client.meta.service_model.service_name}:{name}")
        return call(client, name, arguments)

    with mock_aws():
        for name in ("HEAD", "WORKER"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=f"YOUR-{name}-INSTANCE-PROFILE")
        image = boto3.client("ec2", PLACES["YOUR-REGION"]).describe_images()["Images"][0]["ImageId"]
        with patch.object(BaseClient, "_make_api_call", note):
            from ray.autoscaler._private.aws.config import bootstrap_aws
            from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

            config = bootstrap_aws(launcher(ROOT / "ray_cluster.yaml"))
            made, called = called, set()
            nodes = AWSNodeProvider(config["provider"], config["cluster_name"])
            for group in ("head", "gpu-spot"):
                machine = copy.deepcopy(config["available_node_types"][group]["node_config"]) | {"ImageId": image}
                nodes.create_node(machine, {"ray-node-type": group}, 1)
            started = nodes.non_terminated_nodes({})
            assert len(started) == 2
            nodes.set_node_tags(started[0], {"ray-node-status": "up-to-date"})
            nodes.terminate_nodes(started)
    assert actions_in("aws-user.json") == made
    assert actions_in("aws-machines.json") - NOT_CALLED == called
    assert {"ec2:RunInstances", "ec2:TerminateInstances"} <= called


def check_gcp_machines() -> None:
    from googleapiclient.discovery_cache import get_static_doc

    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        if "enum" in schema:
            assert value in schema["enum"], where
        kind = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}[schema["type"]]
        assert isinstance(value, (kind, int)) if schema.get("format") == "int64" else isinstance(value, kind), where
        if kind is list:
            for item in value:
                check(item, schema["items"], where)
        if kind is dict:
            for name, item in value.items():
                assert name in schema["properties"], f"{where}: there is no {name}"
                check(item, schema["properties"][name], f"{where}.{name}")

    for name, group in launcher(EXAMPLES / "gcp.yaml")["available_node_types"].items():
        check(group["node_config"], {"$ref": "Instance"}, name)


def check_gcp_conditions() -> None:
    import celpy
    import yaml

    for name, bucket, folder in (("gcp-input.yaml", "photos", "shards"), ("gcp-output.yaml", "results", "labels")):
        expression = yaml.safe_load(filled(EXAMPLES / "rights" / name))["expression"]
        program = celpy.Environment().program(celpy.Environment().compile(expression))
        for file, allowed in ((folder, True), (f"{folder}/a.tar", True), (f"{folder}2/a.tar", False), ("a", False)):
            resource = {"resource": {"name": f"projects/_/buckets/{bucket}/objects/{file}"}}
            assert bool(program.evaluate(celpy.json_to_cel(resource))) == allowed, (name, file)


def check_azure_machines() -> None:
    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(azure.__file__).parent / "azure-vm-template.json").read_text())["parameters"]
    for group in launcher(EXAMPLES / "azure.yaml")["available_node_types"].values():
        for name, value in group["node_config"]["azure_arm_parameters"].items():
            assert isinstance(value, {"string": str, "int": int}[template[name]["type"]]), name


def check_packages() -> None:
    """Ray's providers can be imported with the packages that the nodes install."""
    import ray.autoscaler._private._azure.node_provider
    import ray.autoscaler._private.gcp.node_provider  # noqa: F401

    for name in ("gcp", "azure"):
        storage, *packages = (
            launcher(EXAMPLES / f"{name}.yaml")["setup_commands"][-1].split("requirements.lock ")[1].split()
        )
        assert storage in ("gcsfs", "adlfs")
        for package in packages:
            known, _, wanted = package.partition("==")
            assert not wanted or version(known) == wanted, package
            assert version(known)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:  # for the keys that Ray makes
        (Path(home) / ".ssh").mkdir()
        os.environ |= {"HOME": home, "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        os.environ |= {"AWS_DEFAULT_REGION": PLACES["YOUR-REGION"]}
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                check()
                print(f"{name.removeprefix('check_').replace('_', ' ')}: as it should be")
