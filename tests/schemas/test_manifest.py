import dataclasses
import json
from typing import Any

import pytest

from schemas.manifest import Manifest, changed_fields

MANIFEST = Manifest(
    input={"address": "s3://bucket/shards", "format": "tar", "limit": None},
    vocabulary={"classes": [{"name": "cat", "queries": ("cat", "kitten")}], "background": ("sky",)},
    models={"clip": {"name": "ViT-L-14", "revision": "abc"}},
    settings={"logit_scale": 50.0},
)


def test_document_names_categories_and_fingerprint() -> None:
    document = json.loads(MANIFEST.to_json())
    assert document["categories"] == [{"id": 1, "name": "cat"}]
    assert document["fingerprint"] == MANIFEST.fingerprint
    assert {key: document[key] for key in MANIFEST.content} == MANIFEST.content


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
    assert dataclasses.replace(MANIFEST, **change).fingerprint != MANIFEST.fingerprint


def test_fingerprint_survives_json() -> None:
    again = Manifest(**{key: value for key, value in MANIFEST.content.items() if key != "schema_version"})
    assert again.fingerprint == MANIFEST.fingerprint


def test_changes_are_named() -> None:
    other = dataclasses.replace(MANIFEST, settings={"logit_scale": 10.0, "head": 1})
    assert list(changed_fields(MANIFEST.content, other.content)) == ["settings.head", "settings.logit_scale"]
