"""Who goes where: patient -> split, film -> shard, and the keyed ids that are stored."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from xmae_jax.data.records import SPLITS

SHARES = (0.8, 0.1, 0.1)  # train, val, test
MAX_RECORDS = 512  # a shard: about 150 MB of 1280 px films
MIN_RECORDS = 32


def _digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"xmae_jax {kind}\0{text}".encode("utf-8", "surrogateescape")).digest()


def split_of(patient: str) -> str:
    """Choose a split by an unkeyed hash of the raw patient id, so that adding films moves nobody.

    The key of the stored ids plays no part: another key must not make another split.
    """
    draw = int.from_bytes(_digest("split", patient)[:8], "big") / 2**64
    train, val, _ = SHARES
    return SPLITS[0] if draw < train else SPLITS[1] if draw < train + val else SPLITS[2]


def shuffled(films: Sequence[str]) -> list[str]:
    """Order films by a hash of their relative path, so that no shard is a block of one source."""
    return sorted(films, key=lambda film: (_digest("order", film), film))


def shards(films: Sequence[str]) -> list[list[str]]:
    """Cut a split into shards of nearly equal length: 16 or more where films are many."""
    if not films:
        return []
    length = min(max(len(films) // 16, MIN_RECORDS), MAX_RECORDS)
    total = -(-len(films) // length)
    ordered = shuffled(films)
    cuts = [len(ordered) * index // total for index in range(total + 1)]
    return [ordered[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def keyed_id(key: bytes, kind: str, text: str) -> str:
    """Derive a stored id of 16 hex digits; kind keeps a patient "1" apart from a study "1"."""
    message = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:16]


def fingerprint(key: bytes) -> str:
    """Name a key without telling it."""
    return hashlib.sha256(b"xmae_jax key\0" + key).hexdigest()[:16]


def default_key_path() -> Path:
    """Name the user's own key file."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "xmae_jax" / "key"


def load_key(path: Path) -> bytes:
    """Read a key, making it once (32 random bytes in hex, mode 0600) if there is none.

    Raises ValueError if the file holds fewer than 16 bytes.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another run made it a moment ago
            return load_key(path)
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(32).hex().encode() + b"\n")
    key = path.read_bytes().strip()
    if len(key) < 16:
        raise ValueError(f"{path}: a key needs at least 16 bytes")
    return key
