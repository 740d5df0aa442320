"""What the adapters share: finding a data set's files, and its views."""

from pathlib import Path

from data_prep.splits import split_of
from data_prep.tables import UNKNOWN, Labels
from xmae_jax.data.findings import find
from xmae_jax.data.records import DataError

_MAX_BYTES = 1_000_000  # of a report; the longest have some 10,000
_VIEWS = {"lateral": "L", "ll": "L", "rl": "L", "frontal": "Frontal"}


def need(folder: Path, *names: str, where: str) -> Path:
    """Return the one file of a name, in the folder or one folder below; names: each will do.

    where: from where to get it. Raises DataError if there is none, or more than one.
    """
    found = sorted({path for name in names for path in _named(folder, name)})
    if not found:
        raise DataError(f"{folder}: no {' or '.join(names)} (from {where})")
    if len(found) > 1:
        raise DataError(f"{folder}: {' or '.join(map(str, found))}?")
    return found[0]


def there(folder: Path, name: str) -> Path | None:
    """Return a file or folder of a name, in the folder or one folder below, if there is one."""
    found = _named(folder, name)
    return found[0] if found else None


def _named(folder: Path, name: str) -> list[Path]:
    direct = folder / name
    return [direct] if direct.exists() else sorted(folder.glob(f"*/{name}"))


def text_of(path: Path) -> str | None:
    """Read a small text; None if there is none, or no ordinary file (a pipe would block)."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(_MAX_BYTES).decode("utf-8", errors="replace")


def view_of(text: str) -> str:
    """Name a view as the records do; what is not known here stays as it is."""
    return _VIEWS.get(text.lower(), text)


def train_or_val(patient: str) -> str:
    """Split an official training set that has no validation set: val by the patient's hash.

    The tenth of patients that would be val without official lists is val here too.
    """
    return "val" if split_of(patient) == "val" else "train"


def labels_of(values: dict[str, float]) -> Labels:
    """Make a label vector of findings by any of their names; the rest is unknown."""
    labels = list(UNKNOWN)
    for name, value in values.items():
        index = find(name)
        assert index is not None, name
        labels[index] = value
    return tuple(labels)


def refuse(adapter: str, **given: Path | None) -> None:
    """Raise DataError for a table that a data set has no use for."""
    for name, path in given.items():
        if path is not None:
            raise DataError(f"--{name} {path}: adapter {adapter} reads no such file")
