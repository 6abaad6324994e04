"""The rights in `examples/cluster/rights`: what the job needs, and no more."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import ROOT
from tests.support.corpora import sample_images, shards_of, tar_bytes
from tests.support.jobs import Ended, OutputReader, annotate, tiny_flags
from tests.support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, Seaweed, s3_client

RIGHTS = ROOT / "examples/cluster/rights"
INPUT, OUTPUT, ELSEWHERE = (f"s3://{BUCKET}/{prefix}" for prefix in ("shards", "labels", "elsewhere"))
ALL = "nodes"
"""A role with the whole policy of a cluster's nodes."""
NEEDED = [
    ("ReadImages", "s3:GetObject"),
    ("ListImages", "s3:ListBucket"),
    ("WriteLabels", "s3:GetObject"),
    ("WriteLabels", "s3:PutObject"),
    ("WriteLabels", "s3:DeleteObject"),
    ("FindBucket", "s3:GetBucketLocation"),
    ("ListLabels", "s3:ListBucket"),
]
"""Rights without which the job fails. `s3:AbortMultipartUpload` only clears away after an upload that broke off."""
Label = Callable[..., Ended]


def policy(without: tuple[str, str] | None = None) -> dict[str, Any]:
    """What nodes may do, for the test's bucket, without one right."""
    text = re.sub("YOUR-(INPUT|OUTPUT)-BUCKET", BUCKET, (RIGHTS / "aws-buckets.json").read_text())
    document: dict[str, Any] = json.loads(text)
    document["Statement"] = [
        statement | {"Action": kept}
        for statement in document["Statement"]
        if (kept := [action for action in actions(statement) if (statement["Sid"], action) != without])
    ]
    return document


def actions(statement: dict[str, Any]) -> list[str]:
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def keys(role: str) -> dict[str, str]:
    return {"accessKey": f"key-of-{role}", "secretKey": f"secret-of-{role}"}


def role_without(right: tuple[str, str]) -> str:
    return f"without-{'-'.join(right).replace(':', '-')}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server with roles: one with the nodes' policy, and for each right one that lacks it."""
    folder = tmp_path_factory.mktemp("s3")
    policies = {ALL: policy()} | {role_without(right): policy(right) for right in NEEDED}
    admin = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    config = folder / "identities.json"
    config.write_text(
        json.dumps(
            {
                "identities": [{"name": "admin", "credentials": [admin], "actions": ["Admin"]}]
                + [{"name": name, "credentials": [keys(name)], "policyNames": [name]} for name in policies],
                "policies": [{"name": name, "content": json.dumps(rights)} for name, rights in policies.items()],
            }
        )
    )
    running = Seaweed(folder / "files", f"-s3.config={config}")
    try:
        running.start()
        client = s3_client(running.environment)
        for number, members in enumerate(shards_of(sample_images(12), 4)):
            client.pipe_file(f"{BUCKET}/shards/{number:05}.tar", tar_bytes(members))
        client.pipe_file(f"{BUCKET}/elsewhere/00000.tar", tar_bytes(members))
        yield running.environment
    finally:
        running.stop()


@pytest.fixture(scope="module")
def label(
    server: dict[str, str], tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, tiny_diffusion: Path
) -> Label:
    """Runs the job with the rights of a role."""
    flags = tiny_flags(tmp_path_factory.mktemp("request"), tiny_clip, tiny_diffusion)

    def run(role: str, corpus: str, output: str, *more: str) -> Ended:
        own = {"AWS_ACCESS_KEY_ID": keys(role)["accessKey"], "AWS_SECRET_ACCESS_KEY": keys(role)["secretKey"]}
        return annotate(corpus, output, *flags, *more, env=server | own)

    return run


def test_the_policy_has_these_rights_and_no_more() -> None:
    granted = {(statement["Sid"], action) for statement in policy()["Statement"] for action in actions(statement)}
    assert granted == {*NEEDED, ("WriteLabels", "s3:AbortMultipartUpload")}
    assert {statement["Effect"] for statement in policy()["Statement"]} == {"Allow"}


@pytest.mark.end_to_end
@pytest.mark.long
def test_nodes_can_label_resume_and_start_over(server: dict[str, str], label: Label) -> None:
    labels = OutputReader(OUTPUT, server)
    ended = label(ALL, INPUT, OUTPUT, "--limit", "6", "--rows-per-file", "2")
    assert ended.returncode == 0, ended.stderr
    assert len(labels.rows()) == 6
    ended = label(ALL, INPUT, OUTPUT, "--overwrite")
    assert ended.returncode == 0, ended.stderr
    assert len(labels.rows()) == 12
    labels.fs.rm_file(f"{BUCKET}/labels/{min(name for name in labels.names() if name.endswith('.parquet'))}")
    ended = label(ALL, INPUT, OUTPUT)
    assert ended.returncode == 0, ended.stderr
    assert len(labels.rows()) == 12


@pytest.mark.end_to_end
@pytest.mark.long
@pytest.mark.parametrize(("corpus", "output", "flag"), [(ELSEWHERE, OUTPUT, "input"), (INPUT, ELSEWHERE, "output")])
def test_nodes_see_nothing_else(server: dict[str, str], label: Label, corpus: str, output: str, flag: str) -> None:
    ended = label(ALL, corpus, output, "--overwrite")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: --{flag} {ELSEWHERE}")
    assert "access is denied" in ended.stderr
    assert s3_client(server).find(f"{BUCKET}/elsewhere") == [f"{BUCKET}/elsewhere/00000.tar"]


@pytest.mark.end_to_end
@pytest.mark.long
@pytest.mark.parametrize("right", NEEDED, ids="-".join)
def test_every_right_is_needed(label: Label, right: tuple[str, str]) -> None:
    ended = label(role_without(right), INPUT, OUTPUT, "--overwrite")
    assert ended.returncode in (1, 2), ended.stderr
    assert "access is denied" in ended.stderr


def test_azure_reads_one_container_and_writes_one() -> None:
    """The roles are Storage Blob Data Reader and Storage Blob Data Contributor."""
    template = json.loads((RIGHTS / "azure.json").read_text())
    roles = {"reader": "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", "contributor": "ba92f5b4-2d11-453d-a403-e96b0029c9fe"}
    assert all(role in template["variables"][name] for name, role in roles.items())
    identity, *assignments = template["resources"]
    assert identity["name"] == "cliper-annotate"
    containers = (
        "[resourceId('Microsoft.Storage/storageAccounts/blobServices/containers', parameters('account'), 'default'"
    )
    assert [(item["properties"]["roleDefinitionId"], item["scope"]) for item in assignments] == [
        ("[variables('reader')]", f"{containers}, parameters('input'))]"),
        ("[variables('contributor')]", f"{containers}, parameters('output'))]"),
    ]
