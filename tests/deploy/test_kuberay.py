"""KubeRay's manifests, through kustomize, Kubernetes' schemas, Ray's autoscaler and the job's command line."""

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import tyro
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from jobs.annotate import AnnotateOptions
from tests.deploy.files import DEPLOY, DOCKERFILE, PROJECT, search

CLOUDS = {"aws": "s3", "gcp": "gs", "azure": "az"}
CLUSTERS = ["base", *(f"overlays/{cloud}" for cloud in CLOUDS)]
JOBS = [f"overlays/{cloud}-job" for cloud in CLOUDS]
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
