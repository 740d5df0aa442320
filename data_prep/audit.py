"""Does anything that is evaluated stand in training too? Within a data set, and across several.

    python -m data_prep.audit --data DIR [DIR ...]

looks for patients, copies (the same pixels) and near copies (of like perceptual hash) that stand in
two splits, of one set or of two. Prints a report as JSON: `ok`; `sets` and `keys`; how many
patients, and pairs of copies and near copies, stand in two splits; the first `pairs` by id; and as
`notes` what is no error. Patients can be compared only where ids were made with one key, so sets of
several keys are an error, unless --allow-other-keys says that comparing pictures is enough.

Exit codes: 0 nothing is in two splits, 64 usage, 65 something is, keys differ, or bad data, 74 I/O.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.arguments import BAD_DATA, DISK, INTERRUPTED, USAGE, Parser, UsageError
from xmae_jax.data.index import Index, read_index
from xmae_jax.data.leaks import Leak, describe, describe_same, find_leaks, other_keys, same_reports
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import SPLITS

_PAIRS = 100  # of each kind that the report lists


def audit(
    directories: Sequence[Path], *, allow_other_keys: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Compare all splits of all sets; return the report, and in words what is wrong.

    Raises DataError where a set cannot be read.
    """
    sets = {str(directory): read_index(directory) for directory in directories}
    train, val, test = ([of[name] for of in sets.values() if name in of] for name in SPLITS)
    leaks = find_leaks(train, [*val, *test]) + find_leaks(val, test)
    problems = describe(leaks).splitlines()
    notes = [note for of_split in (train, val, test) for note in _copies(of_split)]
    if same := same_reports(train, [*val, *test]) + same_reports(val, test):
        notes.append(describe_same(same))
    keys = other_keys([*train, *val, *test])
    if keys and allow_other_keys:
        notes.append(f"{keys}; across keys, only their pictures were")
    elif keys:
        problems.append(f"{keys}; --allow-other-keys compares their pictures only")
    report = {
        "ok": not problems,
        "sets": {
            name: {split: len(index.ids) for split, index in of.items()}
            for name, of in sets.items()
        },
        "keys": {name: next(iter(of.values())).key for name, of in sets.items()},
        "patients_across_splits": _patients(leaks, [*train, *val, *test]),
        "copies_across_splits": sum(leak.kind == "copy" for leak in leaks),
        "near_copies_across_splits": sum(leak.kind == "near copy" for leak in leaks),
        "pairs": [
            {"kind": kind, "ids": leak.ids, "splits": leak.names}
            for kind in ("patient", "copy", "near copy")
            for leak in [leak for leak in leaks if leak.kind == kind][:_PAIRS]
        ],
        "notes": notes,
    }
    return report, problems


def _patients(leaks: Sequence[Leak], indices: Sequence[Index]) -> int:
    """Count the patients who stand in two splits."""
    held = {leak.ids[1] for leak in leaks if leak.kind == "patient"}
    return len(
        {
            patient
            for index in indices
            for name, patient in zip(index.ids, index.patients, strict=True)
            if name in held
        }
    )


def _copies(of_split: Sequence[Index]) -> list[str]:
    """Tell of copies within one split of all sets: they weigh more there, and leak nothing."""
    films = sum(len(index.pixels) for index in of_split)
    more = films - len({pixels for index in of_split for pixels in index.pixels})
    names = " and ".join(index.name for index in of_split)
    return [f"{names}: {more:,} of {films:,} films are copies of others there"] if more else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser(prog="python -m data_prep.audit", description="is anything in two splits?")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--allow-other-keys", action="store_true")
    try:
        options = parser.parse_args(arguments)
        for directory in options.data:
            if not directory.is_dir():
                raise UsageError(f"--data {directory}: no such folder")
        report, problems = audit(options.data, allow_other_keys=options.allow_other_keys)
    except UsageError as error:
        print(f"data_prep.audit: {error}", file=sys.stderr)
        return USAGE
    except DataError as error:
        print(f"data_prep.audit: {error}", file=sys.stderr)
        return BAD_DATA
    except OSError as error:
        print(f"data_prep.audit: {error}", file=sys.stderr)
        return DISK
    except KeyboardInterrupt:
        return INTERRUPTED
    print(json.dumps(report, indent=1))
    for problem in problems:
        print(f"data_prep.audit: {problem}", file=sys.stderr)
    return BAD_DATA if problems else 0


if __name__ == "__main__":
    sys.exit(main())
