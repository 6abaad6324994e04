"""The run manifest: everything that decides what is in the output, and a fingerprint of it.

The manifest lies in the output as ``manifest.json``, and in every Parquet file's metadata under the key ``cliper``.
It never holds credentials: inputs with credentials in their address are refused before it is written.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.rows import SCHEMA_VERSION

METADATA_KEY = b"cliper"


@dataclass(frozen=True)
class Manifest:
    """What was asked for.

    Attributes:
        input: address of the corpus, and how it is read.
        vocabulary: per class its name and queries, in category order; the background words; where their embeddings
            come from.
        models: per model its name and revision.
        settings: the method's settings and the precision.
    """

    input: dict[str, Any]
    vocabulary: dict[str, Any]
    models: dict[str, Any]
    settings: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        """The part that the fingerprint covers, as JSON knows it."""
        fields = {
            "schema_version": SCHEMA_VERSION,
            "input": self.input,
            "vocabulary": self.vocabulary,
            "models": self.models,
            "settings": self.settings,
        }
        return json.loads(json.dumps(fields))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content; runs with the same fingerprint may continue each other."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def to_json(self) -> str:
        categories = coco_categories([entry["name"] for entry in self.vocabulary["classes"]])
        document = {"fingerprint": self.fingerprint, "categories": categories, **self.content}
        return json.dumps(document, indent=1, ensure_ascii=False)

    def parquet_metadata(self) -> dict[bytes, bytes]:
        return {METADATA_KEY: self.to_json().encode("utf-8")}


def coco_categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's category list: ids from 1 in vocabulary order."""
    return [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]


def changed_fields(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields in which two manifests' contents differ."""
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from changed_fields(mine, other, f"{prefix}{key}.")
        elif mine != other:
            yield f"{prefix}{key}"
