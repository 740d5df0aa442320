"""Turn a table of reports without films into shards, for training on text alone.

    python -m data_prep.reports --input reports.csv --output DIR [--patient-prefix openi:]

A row a study, by the columns `study_id`, `patient_id`, `findings`, `impression`, `indication`,
`comparison`, `source`, `split`, `licence`, `sex`, `age` and findings by name, of which all but the
first may be missing. The shards are those of `data_prep.build` but for the film, which is empty:
ids are made with the same key, so patients are compared with those of films, and without a column
`split` a patient falls into the same one. For that the ids must be those of the films: adapters put
the name of the data set before them, and so does `--patient-prefix`. Without a patient a study has
one of its own, as have films of no known patient. A study with neither findings nor impression is
left out.

Exit codes: 0 done, 64 usage, 65 bad data, 74 disk or I/O.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import splits
from data_prep.arguments import BAD_DATA, DISK, INTERRUPTED, NAME, USAGE, Parser, UsageError
from data_prep.films import report_id, unknown_patient
from data_prep.finish import REJECTED, write_rejected
from data_prep.inputs import Row, sha256_of, split_name
from data_prep.tables import Line, Table
from xmae_jax.data import records
from xmae_jax.data.index import INDEX, REPORT, Entry, label_text, write_index
from xmae_jax.data.manifest import (
    FORMAT,
    MANIFEST,
    DataError,
    check,
    describe,
    file_digest,
    load_manifest,
    write_manifest,
)
from xmae_jax.data.people import stored_age
from xmae_jax.data.records import FINDINGS, Record, Report

_COLUMNS = tuple("study_id patient_id source split licence sex age".split())
_NOTHING = "neither findings nor impression"


@dataclass(frozen=True)
class _Study:
    """A report, and what its row tells beside it."""

    row: Row
    report: Report
    split: str


def read(path: Path, prefix: str = "") -> tuple[dict[str, _Study], list[tuple[str, str]]]:
    """Read the studies of a table by their raw ids, and what is left out of it, with the reason.

    prefix: goes before the patients' ids. A patient's row without a split goes where others go.
    """
    table = Table(path, required=("study_id",))
    findings = table.findings(but=(*_COLUMNS, *records.NO_REPORT))
    studies: dict[str, tuple[Row, Report]] = {}
    rejected: list[tuple[str, str]] = []
    official: dict[str, str] = {}  # patient -> split, as far as the table says
    for line in table:
        name = line.id("study_id")
        if not name:
            raise line.error("study_id", "blank")
        report = line.report()
        if not report["findings"] and not report["impression"]:
            rejected.append((f"{path.name}, line {line.number}", _NOTHING))
            continue
        row = _row(line, findings(line), prefix)
        if row.split and official.setdefault(row.patient, row.split) != row.split:
            raise line.error("split", "a patient with reports in two splits")
        if studies.setdefault(name, (row, report)) != (row, report):
            raise line.error("study_id", "a second row of one study says something else")
    splits_of = {row.patient: official.get(row.patient) or splits.split_of(row.patient)
                 for row, _ in studies.values()}  # fmt: skip
    made = {name: _Study(*one, splits_of[one[0].patient]) for name, one in studies.items()}
    return made, rejected


def _row(line: Line, findings: tuple[float, ...], prefix: str) -> Row:
    study, patient = line.id("study_id"), line.id("patient_id")
    return Row(
        patient=f"{prefix}{patient}" if patient else unknown_patient("", study),
        study=study,
        source=line.word("source"),
        findings=findings,
        split=split_name(line, "split"),
        licence=line.word("licence"),
        sex=line.sex("sex"),
        age=line.age("age"),
    )


def make_record(study: _Study, key: bytes) -> Record:
    """Make the record of a report: no film, no contour, nothing known of either."""
    row, unknown = study.row, np.full(2, np.nan, np.float32)
    return Record(
        image=b"",
        lung_mask=None,
        lung_hull=None,
        mask_source="none",
        mask_quality=0.0,
        id=splits.keyed_id(key, "report", row.study),
        patient=splits.keyed_id(key, "patient", row.patient),
        study=splits.keyed_id(key, "study", row.study),
        view="",
        sex=row.sex,
        age=math.nan if row.age is None else stored_age(row.age),
        source=row.source,
        split=study.split,
        labels=row.labels,
        report=study.report,
        spacing=unknown,
        original_size=np.zeros(2, np.int32),
        valid_box=np.zeros(4, np.int32),
    )


def _entry(record: Record, key: bytes) -> Entry:
    alone = hashlib.sha256(f"report {record['id']}".encode()).hexdigest()
    return Entry(
        **{name: record[name] for name in ("id", "patient", "study", "split", "source", "view")},
        sex=record["sex"],
        age=record["age"],
        labels=label_text(record["labels"].tolist()),
        # No film, so a copy of none: nothing else has these, or others within NEAR bits.
        pixels=alone,
        phash=alone,
        kind=REPORT,
        bits=0,
        vendor="",
        height=0,
        width=0,
        mask_source="none",
        mask_quality=0.0,
        flags="",
        text=report_id(record["report"], key),
    )


def write(
    folder: Path,
    studies: dict[str, _Study],
    rejected: Sequence[tuple[str, str]],
    *,
    key: bytes,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write a data set into an empty folder; return its manifest."""
    files: list[dict[str, Any]] = []
    entries: list[Entry] = []
    for split in records.SPLITS:
        members = [name for name, study in studies.items() if study.split == split]
        parts = splits.shards(members)
        for index, names in enumerate(parts):
            made = [make_record(studies[name], key) for name in names]
            shard = records.shard_name(about["name"], split=split, index=index, total=len(parts))
            records.write_shard(folder / shard, map(records.encode, made))
            files.append(describe(folder / shard, split=split, records=len(made)))
            entries += [_entry(record, key) for record in made]
    write_index(folder, entries)
    write_rejected(folder / REJECTED, rejected)
    metadata = records.write_tfds_metadata(
        folder, name=about["name"], files=files, labels=len(FINDINGS), codec=about["codec"]
    )
    metadata[INDEX] = file_digest(folder / INDEX)
    counts = {
        "films": 0,
        "reports": len(entries),
        "rejected": len(rejected),
        "reasons": dict(Counter(reason for _, reason in rejected)),
        "splits": dict(Counter(entry.split for entry in entries)),
        "licences": dict(sorted(Counter(s.row.licence for s in studies.values()).items())),
        "mask_licences": {},
    }
    return {**about, "files": files, "counts": counts, "metadata": metadata}


def build(options: argparse.Namespace) -> str:
    """Build the shards, or find them up to date; return the summary."""
    try:
        key = splits.load_key(options.key)
    except (ValueError, IsADirectoryError) as error:
        raise UsageError(f"--key {options.key}: {error}") from None
    output: Path = options.output
    about = {
        "name": options.name,
        "labels": list(FINDINGS),
        "size": 0,
        "fit": "none",
        "codec": "none",
        "generator": {"program": "data_prep.reports", "record_format": FORMAT},
        "arguments": {
            "name": options.name,
            "key_fingerprint": splits.fingerprint(key),
            "patient_prefix": options.patient_prefix,
        },
        "inputs": sha256_of(options.input),
    }
    if output.exists() and any(output.iterdir()):
        if not (output / MANIFEST).is_file():
            raise UsageError(f"--output {output}: not empty, and no data set")
        manifest = load_manifest(output)
        if any(manifest.get(name) != about[name] for name in ("generator", "arguments", "inputs")):
            raise UsageError(f"{output} was built from something else: choose another --output")
        check(output, manifest)
        return f"{output}: up to date, nothing changed"
    studies, rejected = read(options.input, options.patient_prefix)
    if not studies:
        raise DataError(f"{options.input}: no report")
    work = output.with_name(output.name + ".incomplete")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    manifest = write(work, studies, rejected, key=key, about=json.loads(json.dumps(about)))
    write_manifest(work, manifest)
    work.rename(output)
    per_split = ", ".join(f"{name} {n}" for name, n in manifest["counts"]["splits"].items())
    told = f"{len(studies)} reports ({per_split}), {len(rejected)} rejected (see {REJECTED})"
    alone = sum(s.row.patient == unknown_patient("", s.row.study) for s in studies.values())
    if alone:
        told += (
            f"\nnote: of {alone} reports no patient is known (a column patient_id would tell): they"
            " are not compared with films by patient, and may be of one whose films are held out"
        )
    return told


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m data_prep.reports", description="reports -> shards")
    parser.add_argument("--input", type=Path, required=True, metavar="CSV")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default="reports", help="of the data set, in the shards' names")
    parser.add_argument("--patient-prefix", default="", metavar="TEXT",
                        help="before patients' ids, as of their films: openi:, mimic:")  # fmt: skip
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the ids; made if absent")
    options = parser.parse_args(arguments)
    if not options.input.is_file():
        raise UsageError(f"--input {options.input}: no such file")
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output {options.output}: not a folder")
    if not NAME.fullmatch(options.name):
        raise UsageError(f"--name {options.name!r}: lower-case letters, digits and _")
    options.output = options.output.resolve()  # a link would be replaced, not what it points to
    options.key = options.key or splits.default_key_path()
    if options.key.resolve().is_relative_to(options.output):
        raise UsageError(f"--key {options.key}: must not lie inside the output")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        print(build(_parse(arguments)))
    except UsageError as error:
        print(f"data_prep.reports: {error}", file=sys.stderr)
        return USAGE
    except DataError as error:
        print(f"data_prep.reports: {error}", file=sys.stderr)
        return BAD_DATA
    except KeyboardInterrupt:
        print("data_prep.reports: stopped; the output was not written", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"data_prep.reports: {type(error).__name__}: {error}", file=sys.stderr)
        return DISK
    return 0


if __name__ == "__main__":
    sys.exit(main())
