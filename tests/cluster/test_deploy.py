"""What brings the job onto a cluster: Ray's launcher, KubeRay's manifests, the image.

No machine, cluster or image is started. The files go through what would read them: Ray's own functions, kustomize,
Kubernetes' schemas, hadolint, the job's command line.
"""

import copy
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import tyro
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.annotate import AnnotateOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLOUDS = {"aws": "s3", "gcp": "gs", "azure": "az"}
CLUSTERS = ["base", *(f"overlays/{cloud}" for cloud in CLOUDS)]
JOBS = [f"overlays/{cloud}-job" for cloud in CLOUDS]
FILES = sorted(
    [ROOT / "ray_cluster.yaml", *(path for path in DEPLOY.rglob("*") if path.suffix in {"", ".yaml", ".md"})]
)
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_\w{20}|PRIVATE KEY|secret_?(access_?)?key\b|ssh_private_key|aws_credentials|RAY_AUTH_TOKEN\b"
    r"|password",
    re.IGNORECASE,
)


def uv_version() -> str:
    return search(r"^UV_VERSION := (\S+)$", ROOT / "Makefile")


def search(pattern: str, path: Path) -> str:
    found = re.findall(pattern, path.read_text(), re.MULTILINE)
    assert len(found) == 1, (pattern, found)
    return str(found[0])


@pytest.mark.parametrize("path", [path for path in FILES if path.is_file()], ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not SECRETS.findall(path.read_text())


# Ray's cluster launcher


@cache
def launcher() -> dict[str, Any]:
    """The configuration with Ray's defaults, made and checked as `ray up` does it before it talks to AWS."""
    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
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


@pytest.mark.parametrize("kind", ["head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_commands_are_shell(kind: str) -> None:
    for command in launcher()[kind]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# KubeRay


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not installed")


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """Schema of an object that has no other fields; the required ones are named first."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, NUMBER, YES, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"const": True}, {"type": "object"}
START_PARAMS = closed("", **{"num-cpus": TEXT})
RAY_CLUSTER = closed(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=closed("mode", mode={"const": "token"}),
    enableInTreeAutoscaling=YES,
    autoscalerOptions=closed("version", version={"const": "v2"}, idleTimeoutSeconds=NUMBER, securityContext=ANY),
    headGroupSpec=closed("rayStartParams template", rayStartParams=START_PARAMS, template=ANY),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName minReplicas maxReplicas template",
            groupName=TEXT,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=START_PARAMS,
            template=ANY,
        ),
    },
)
RAY_JOB = closed(
    "entrypoint rayClusterSpec shutdownAfterJobFinishes",
    entrypoint=TEXT,
    backoffLimit={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=NUMBER,
    submitterPodTemplate=ANY,
    rayClusterSpec=RAY_CLUSTER,
)
"""The fields of KubeRay 1.6's custom resources that the manifests use: a misspelt one fails."""


@cache
def render(folder: str) -> dict[str, Any]:
    """What kustomize writes for a folder, by kind."""
    command = ["kubectl", "kustomize", str(DEPLOY / "kuberay" / folder)]
    objects = list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert len({item["kind"] for item in objects}) == len(objects)
    return {item["kind"]: item for item in objects}


def cluster_spec(folder: str) -> dict[str, Any]:
    objects = render(folder)
    spec: dict[str, Any] = (
        objects["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in objects else objects["RayCluster"]["spec"]
    )
    return spec


def pod_templates(folder: str) -> Iterator[dict[str, Any]]:
    yield cluster_spec(folder)["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster_spec(folder)["workerGroupSpecs"])
    if "RayJob" in render(folder):
        yield render(folder)["RayJob"]["spec"]["submitterPodTemplate"]


def images_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from [item] if key == "image" else images_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from images_in(item)


@needs_kubectl
@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_objects_fit_the_schemas(folder: str) -> None:
    objects = render(folder)
    version = kubernetes_validate.latest_version()
    for template in pod_templates(folder):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template.get("metadata", {})}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)
    kubernetes_validate.validate(objects["ServiceAccount"], version, strict=True)
    kind, schema = ("RayJob", RAY_JOB) if folder in JOBS else ("RayCluster", RAY_CLUSTER)
    assert objects.keys() == {"ServiceAccount", kind}
    assert objects[kind]["apiVersion"] == "ray.io/v1"
    jsonschema.validate(objects[kind]["spec"], schema)


@needs_kubectl
@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_rays_autoscaler_reads_the_cluster(folder: str) -> None:
    spec = cluster_spec(folder)
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "cliper-annotate", "namespace": "default"}, "spec": spec}
    )
    head, gpu = config["available_node_types"][config["head_node_type"]], config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert gpu["resources"]["GPU"] == 1
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)
    assert spec["rayVersion"] == ray.__version__


@needs_kubectl
@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_pods_are_confined_and_served(folder: str) -> None:
    user = int(search(r"^USER (\S+)$", DOCKERFILE))
    for template in pod_templates(folder):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == user
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        if container["name"] == "ray-job-submitter":
            continue
        assert pod["serviceAccountName"] == render(folder)["ServiceAccount"]["metadata"]["name"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", home_of_models()}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"name": "HF_HOME", "value": home_of_models()} in container["env"]


def home_of_models() -> str:
    return search(r"HF_HOME=(\S+)$", DOCKERFILE)


@needs_kubectl
def test_one_image_of_this_version_everywhere() -> None:
    images = {image for folder in CLUSTERS + JOBS for image in images_in(list(render(folder).values()))}
    assert len(images) == 1
    assert images.pop().rpartition(":")[2] == PROJECT["version"]


@needs_kubectl
@pytest.mark.parametrize("cloud", CLOUDS)
def test_workers_prefer_spot_nodes_and_the_head_avoids_them(cloud: str) -> None:
    spec = cluster_spec(f"overlays/{cloud}")
    head, (worker,) = spec["headGroupSpec"]["template"]["spec"], spec["workerGroupSpecs"]
    preferred = worker["template"]["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    keys = {rule["key"] for term in preferred for rule in term["preference"]["matchExpressions"]}
    assert keys
    assert "tolerations" not in head
    tolerated = {toleration["key"] for toleration in worker["template"]["spec"]["tolerations"]}
    if cloud == "azure":  # where every spot node has a taint
        assert tolerated == {"nvidia.com/gpu"} | keys
        return
    required = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {rule["key"] for term in required for rule in term["matchExpressions"]} == keys
    assert {rule["operator"] for term in required for rule in term["matchExpressions"]} == {"NotIn"}


@needs_kubectl
@pytest.mark.parametrize("cloud", CLOUDS)
def test_bucket_rights_come_from_the_service_account(cloud: str) -> None:
    annotations = render(f"overlays/{cloud}")["ServiceAccount"]["metadata"]["annotations"]
    (name,) = annotations
    assert name in {
        "eks.amazonaws.com/role-arn",
        "iam.gke.io/gcp-service-account",
        "azure.workload.identity/client-id",
    }
    for template in list(pod_templates(f"overlays/{cloud}-job"))[:2]:
        labels = template.get("metadata", {}).get("labels", {})
        assert labels.get("azure.workload.identity/use") == ("true" if cloud == "azure" else None)


@needs_kubectl
@pytest.mark.parametrize("cloud", CLOUDS)
def test_job_is_the_clusters_and_its_command_is_understood(cloud: str) -> None:
    assert cluster_spec(f"overlays/{cloud}-job") == cluster_spec(f"overlays/{cloud}")
    python, flag, module, *arguments = shlex.split(render(f"overlays/{cloud}-job")["RayJob"]["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "jobs.annotate")
    options = tyro.cli(AnnotateOptions, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    options.check()
    assert options.cluster.actors == cluster_spec(f"overlays/{cloud}")["workerGroupSpecs"][0]["maxReplicas"]
    for address in (options.input, options.output, options.vocab):
        assert str(address).startswith(f"{CLOUDS[cloud]}://")


# The image


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    run = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_versions_are_the_projects() -> None:
    assert search(r"^FROM ghcr.io/astral-sh/uv:(\S+) AS uv$", DOCKERFILE) == uv_version()
    cuda = search(r"^FROM nvidia/cuda:(\d+\.\d+)\S*-base-ubuntu24.04$", DOCKERFILE)
    assert search(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", ROOT / "requirements.lock") == cuda
    pythons = re.findall(r"python ?(3\.\d+)", DOCKERFILE.read_text())
    assert set(pythons) == {"3.12"}
    assert "3.12" in SpecifierSet(PROJECT["requires-python"])
    assert "uv pip sync --require-hashes --compile-bytecode requirements.lock" in DOCKERFILE.read_text()


def test_user_is_not_root() -> None:
    assert int(search(r"^USER (\S+)$", DOCKERFILE)) > 0


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last line that matches it or a folder above it decides."""
    above = [path, *map(str, Path(path).parents)][:-1]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [Path(name).name for name in above] if line.startswith("**/") else above
        if line and not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


def test_image_gets_what_the_job_needs_and_no_more() -> None:
    sources = {
        name
        for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in line.split()
    }
    assert sources == {"requirements.lock", "."}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = ["requirements.lock", "pyproject.toml", "README.md", "LICENSE", "cliper/fetch.py"]
    needed += [str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name[:-1]).rglob("*.py")]
    needed += [
        "cliper/published.json",
        "cliper/demo_model/clip/open_clip_model.safetensors",
        "jobs/templates/report.css",
    ]
    assert all((ROOT / name).is_file() for name in needed)
    assert [name for name in needed if not is_sent(name)] == []
    unwanted = [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "tests/tiny.py",
        "ray_cluster.yaml",
        "cluster/deploy/Dockerfile",
    ]
    assert [name for name in [*unwanted, "jobs/__pycache__/annotate.pyc"] if is_sent(name)] == []
