"""JSON that carries a digest of itself: a changed character is seen when it is read."""

import hashlib
import json
from typing import Any


def json_digest(tree: Any) -> str:
    """Return sha256 over JSON, spelt in one way only."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(tree: dict[str, Any]) -> dict[str, Any]:
    """Add `seal`, the digest of everything else."""
    return {**tree, "seal": json_digest(tree)}


def unseal(text: str | bytes) -> dict[str, Any]:
    """Parse what `seal` made; ValueError if it is no such JSON or was changed since."""
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError("not a JSON object")
    if tree.pop("seal", None) != json_digest(tree):
        raise ValueError("damaged or edited since it was written")
    return tree
