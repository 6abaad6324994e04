"""The run manifest: everything that decides what is in the output, and a fingerprint of it.

The manifest is the file ``manifest.json`` in the output. A labelling job also writes it to the metadata of every
Parquet file, under the key ``cliper``. It never holds credentials: addresses with credentials are refused earlier.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.rows import SCHEMA_VERSION

METADATA_KEY = b"cliper"


@dataclass(frozen=True)
class Manifest:
    """A request as a document with a fingerprint.

    Attributes:
        content: the request, as JSON values. The fingerprint covers it.
        derived: fields that follow from the content. The fingerprint does not cover them.
    """

    content: dict[str, Any]
    derived: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content. Runs with the same fingerprint may continue each other."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def to_json(self) -> str:
        document = {"fingerprint": self.fingerprint, **self.derived, **self.content}
        return json.dumps(document, indent=1, ensure_ascii=False)

    def parquet_metadata(self) -> dict[bytes, bytes]:
        return {METADATA_KEY: self.to_json().encode("utf-8")}

    def is_same_kind(self, document: dict[str, Any]) -> bool:
        """True if another manifest's document comes from the same kind of job: it has the same fields."""
        return self.content.keys() <= document.keys()

    def changes(self, document: dict[str, Any]) -> list[str]:
        """Dotted names of the fields of the content in which another manifest's document differs."""
        return list(changed_fields(json.loads(json.dumps(self.content)), {key: document[key] for key in self.content}))


def labelling_manifest(
    input: dict[str, Any], vocabulary: dict[str, Any], models: dict[str, Any], settings: dict[str, Any]
) -> Manifest:
    """The manifest of a labelling job.

    Args:
        input: address of the corpus, and how it is read.
        vocabulary: name and queries of each class, in category order; the background words; the source of their
            embeddings.
        models: name and revision of each model.
        settings: the method's settings and the precision.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "input": input,
        "vocabulary": vocabulary,
        "models": models,
        "settings": settings,
    }
    return Manifest(content, {"categories": coco_categories([entry["name"] for entry in vocabulary["classes"]])})


def coco_categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's category list: ids from 1 in vocabulary order."""
    return [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]


def changed_fields(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields in which two documents differ."""
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from changed_fields(mine, other, f"{prefix}{key}.")
        elif mine != other:
            yield f"{prefix}{key}"
