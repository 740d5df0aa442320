"""Features that a frozen encoder computed once, as a source of examples like `Records`.

A directory of arrays, read by memory map, and `features.json`, which says of which encoder, view
and records they are and holds a digest of every file. It is written under another name and renamed
when it is whole; nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from xmae_jax.data.findings import place_of
from xmae_jax.data.manifest import DataError, file_digest
from xmae_jax.seal import json_digest, seal, unseal

ABOUT = "features.json"
FORMAT = 1
_CHUNK = 1024  # examples in memory at once


def place_of_features(folder: str | os.PathLike, key: dict[str, Any]) -> Path:
    """Name the directory of what `key` describes."""
    return Path(folder) / json_digest({"format": FORMAT, **key})[:16]


class FeatureSource:
    """Random access to the features of one split; threads and pickled copies may share it.

    An example has `pooled` float32 [l 2 d], the CLS token and the mean valid patch of each of the
    last blocks, oldest first; `labels` float32 of all findings; `id`; and where patches are stored
    `patches` float16 [l n d] and `valid` bool [n].
    """

    digest: str
    """Names encoder, view and records; not the bytes, which another chip may round otherwise."""

    def __init__(self, directory: str | os.PathLike, key: dict[str, Any]) -> None:
        """Check every file's digest; DataError where it is not what `key` says or was written."""
        self.directory, self.digest = Path(directory), json_digest({"format": FORMAT, **key})
        try:
            about = unseal((self.directory / ABOUT).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.directory / ABOUT}: {error}") from None
        if about["key"] != {"format": FORMAT, **key}:
            raise DataError(f"{self.directory}: features of another encoder, view or data set")
        for name, digest in about["files"].items():
            path = self.directory / name
            if not path.is_file() or file_digest(path) != digest:
                raise DataError(f"{path}: not the file that was written; remove {self.directory}")
        self._names = [name for name in about["files"] if name.endswith(".npy")]
        self._ids = json.loads((self.directory / "ids.json").read_text())
        self._forget()

    def _forget(self) -> None:
        self._arrays = {
            name.removesuffix(".npy"): np.load(
                self.directory / name, mmap_mode="r", allow_pickle=False
            )
            for name in self._names
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one example; DataError if its record could not be read when features were made."""
        if not 0 <= index < len(self):
            raise IndexError(f"features {index} of {len(self)}")
        if self._ids[index] is None:
            raise DataError(f"{self.where(index)}: its record is damaged")
        return {name: array[index] for name, array in self._arrays.items()} | {
            "id": self._ids[index]
        }

    def damage(self, index: int, error: Exception) -> DataError:
        """Name an example that is damaged."""
        return DataError(f"{self.where(index)} is damaged ({error})")

    def where(self, index: int) -> str:
        """Say where an example lies."""
        return f"{self.directory}, features {index}"

    def pooled(self, rows: Int[np.ndarray, " r"]) -> Float32[np.ndarray, "_ l 2 d"]:
        """Read `pooled` of those rows that there are."""
        return self._arrays["pooled"][[row for row in rows.tolist() if self._ids[row] is not None]]


def standardisation(
    sources: Sequence[FeatureSource], rows: Sequence[Int[np.ndarray, " _"]]
) -> tuple[Float32[np.ndarray, "l 2 d"], Float32[np.ndarray, "l 2 d"]]:
    """Return mean and deviation of `pooled` over the training rows of each source.

    Those of a BatchNorm without scale and bias over the whole split, with the epsilon of MAE's
    linear probe (facebookresearch/mae, main_linprobe.py): sqrt(variance + 1e-6).
    """

    def chunks() -> Iterator[Float64[np.ndarray, "r l 2 d"]]:
        for source, own in zip(sources, rows, strict=True):
            for first in range(0, len(own), _CHUNK):
                yield source.pooled(own[first : first + _CHUNK]).astype(np.float64)

    totals = [(x.sum(axis=0), len(x)) for x in chunks()]
    count = max(sum(n for _, n in totals), 1)
    mean = np.sum([total for total, _ in totals], axis=0) / count
    # A second pass, since a difference of large squares would lose digits.
    variance = np.sum([((x - mean[None]) ** 2).sum(axis=0) for x in chunks()], axis=0) / count
    return mean.astype(np.float32), np.sqrt(variance + 1e-6).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FeatureView:
    """Features of a record and what is known of its findings, as `LabelledView` has it.

    `pooled` float32 [l 2 d], standardised if `mean` and `deviation` are there; `labels` float32
    [c] of `findings`; `patches` float16 [l n d] and `valid` bool [n] as the source has them.
    """

    findings: tuple[str, ...]
    mean: Float32[np.ndarray, "l 2 d"] | None
    deviation: Float32[np.ndarray, "l 2 d"] | None

    def __call__(
        self,
        record: dict[str, Any],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Choose the findings, and standardise."""
        example = {name: value for name, value in record.items() if name != "id"}
        example["labels"] = record["labels"][[place_of(name) for name in self.findings]]
        if self.mean is not None:
            example["pooled"] = (record["pooled"] - self.mean) / self.deviation
        return example


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Wait until no other run on this machine writes the same features."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_features(
    place: Path,
    key: dict[str, Any],
    rows: Iterable[tuple[int, str, dict[str, np.ndarray]]],
    *,
    count: int,
) -> None:
    """Write (index, id, arrays) of records, of which there are `count`; some may be left out.

    What a killed run left half written is written anew.
    """
    partial = place.with_name(f"partial_{place.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    ids: list[str | None] = [None] * count
    for index, name, values in rows:
        for field, value in values.items():
            if not np.isfinite(value).all() and field != "labels":
                raise DataError(f"record {name}: the encoder's {field} are not finite")
            if field not in arrays:
                arrays[field] = np.lib.format.open_memmap(
                    partial / f"{field}.npy", "w+", value.dtype, (count, *value.shape)
                )
            arrays[field][index] = value
        ids[index] = name
    for array in arrays.values():
        array.flush()  # pyright: ignore[reportAttributeAccessIssue]
    (partial / "ids.json").write_text(json.dumps(ids))
    files = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
    about = seal({"key": {"format": FORMAT, **key}, "files": files})
    (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    for path in (*partial.iterdir(), partial):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    partial.rename(place)
