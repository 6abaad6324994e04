import json
from typing import Any

import pytest

from schemas.manifest import Manifest, labelling_manifest

REQUEST: dict[str, Any] = {
    "input": {"address": "s3://bucket/shards", "format": "tar", "limit": None},
    "vocabulary": {"classes": [{"name": "cat", "queries": ("cat", "kitten")}], "background": ("sky",)},
    "models": {"clip": {"name": "ViT-L-14", "revision": "abc"}},
    "settings": {"logit_scale": 50.0},
}
MANIFEST = labelling_manifest(**REQUEST)
FINGERPRINT = "62f1d29a9d44f6a09ce1a5a672c3f4029fd5ab95cd752b39c43871009f611def"


def test_outputs_of_earlier_versions_keep_their_fingerprint_and_fields() -> None:
    document = json.loads(MANIFEST.to_json())
    assert document["fingerprint"] == FINGERPRINT
    assert list(document) == [
        "fingerprint", "categories", "schema_version", "input", "vocabulary", "models", "settings",
    ]  # fmt: skip
    assert document["schema_version"] == 7


def test_document_names_categories_and_fingerprint() -> None:
    document = json.loads(MANIFEST.to_json())
    assert document["categories"] == [{"id": 1, "name": "cat"}]
    assert document["fingerprint"] == MANIFEST.fingerprint
    assert {key: document[key] for key in MANIFEST.content} == json.loads(json.dumps(MANIFEST.content))


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"address": "s3://bucket/other", "format": "tar", "limit": None}},
        {"vocabulary": {"classes": [{"name": "cat", "queries": ("cat",)}], "background": ("sky",)}},
        {"models": {"clip": {"name": "ViT-L-14", "revision": "def"}}},
        {"settings": {"logit_scale": 50.5}},
    ],
)
def test_fingerprint_sees_every_part(change: dict[str, Any]) -> None:
    assert labelling_manifest(**REQUEST | change).fingerprint != MANIFEST.fingerprint


def test_fingerprint_survives_json() -> None:
    again = Manifest(json.loads(json.dumps(MANIFEST.content)))
    assert again.fingerprint == MANIFEST.fingerprint


def test_changes_are_named() -> None:
    other = labelling_manifest(**REQUEST | {"settings": {"logit_scale": 10.0, "head": 1}})
    assert MANIFEST.changes(json.loads(other.to_json())) == ["settings.head", "settings.logit_scale"]


def test_only_a_manifest_with_the_same_fields_is_of_the_same_kind() -> None:
    assert MANIFEST.is_same_kind(json.loads(MANIFEST.to_json()))
    assert not MANIFEST.is_same_kind(json.loads(Manifest({"labels": "a", "ids_sha256": "b"}).to_json()))
    assert not MANIFEST.is_same_kind({})
