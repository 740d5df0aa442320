"""Turn a folder of chest radiographs into shards.

    python -m data_prep.build --input DIR --output DIR

reads every DICOM, PNG, JPEG and TIFF file under DIR (under DIR/images if there is one), joins
DIR/lung_masks, DIR/labels.csv and DIR/reports.csv where they exist, and writes ArrayRecord
shards, `manifest.json` and `rejected.csv` (file, reason). Patients are split 80/10/10 by a hash.
The output appears in one rename; any number of workers writes the same bytes; a second run with
the same arguments on unchanged inputs changes nothing.

Exit codes: 0 done, 64 usage, 65 bad data, 73 another build is writing this output, 74 disk or I/O.
"""

import argparse
import contextlib
import csv
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from data_prep import splits
from data_prep.contours import LUNGS, RETROCARDIAC, model_digest
from data_prep.films import (
    FITS,
    Job,
    Outcome,
    Shard,
    build_shard,
    digest_film,
    patients_of,
)
from data_prep.inputs import Inputs, Row, digest_of, scan, sha256_of
from xmae_jax.data import records
from xmae_jax.data.manifest import FORMAT, MANIFEST, describe, load_manifest, write_manifest
from xmae_jax.data.processes import die_with_parent
from xmae_jax.data.records import FINDINGS, DataError, Report

USAGE, BAD_DATA, LOCKED, DISK, INTERRUPTED = 64, 65, 73, 74, 130
_PACKAGES = ("array_record", "numpy", "pillow", "pydicom", "scikit-image", "tensorflow-datasets")


class UsageError(Exception):
    """The command line asks for something that cannot be; exit code 64."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(message)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; UsageError says what is wrong with it."""
    parser = _Parser(prog="python -m data_prep.build", description="raw archive -> shards")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="default: INPUT/lung_masks")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="default: INPUT/labels.csv")
    parser.add_argument("--reports", type=Path, metavar="CSV", help="default: INPUT/reports.csv")
    parser.add_argument("--size", type=int, default=1280, help="side of a stored film in pixels")
    parser.add_argument("--fit", choices=FITS, default="pad")
    parser.add_argument("--lungs", choices=LUNGS, default="auto")
    parser.add_argument(
        "--retrocardiac",
        choices=RETROCARDIAC,
        default="exclude",
        help="the lung behind the heart, in the model's contours",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--name", default="films", help="of the data set, in the shards' names")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the ids; made if absent")
    parser.add_argument("--id-map", type=Path, metavar="FILE", help="write stored id -> input path")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if not options.input.is_dir():
        raise UsageError(f"--input {options.input}: no such folder")
    for name in ("masks", "labels", "reports"):
        path = getattr(options, name)
        if path is not None and not (path.is_dir() if name == "masks" else path.is_file()):
            raise UsageError(f"--{name} {path}: not there")
    if not 64 <= options.size <= 4096:
        raise UsageError(f"--size {options.size}: 64 to 4096 pixels")
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", options.name):
        raise UsageError(f"--name {options.name!r}: lower-case letters, digits and _")
    _check_places(options)


def _check_places(options: argparse.Namespace) -> None:
    """Refuse an output among the inputs, and secrets in the output."""
    output, source = options.output.resolve(), options.input.resolve()
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output {options.output}: not a folder")
    films = source / "images" if (source / "images").is_dir() else source
    if source.is_relative_to(output) or output.is_relative_to(films):
        raise UsageError(f"--output {options.output}: must lie outside the input")
    options.key = options.key or splits.default_key_path()
    for name in ("key", "id_map"):
        path = getattr(options, name)
        inside = (output, output.with_name(output.name + ".incomplete"))
        if path is not None and any(map(path.resolve().is_relative_to, inside)):
            raise UsageError(f"--{name.replace('_', '-')} {path}: must not lie inside the output")
    if options.id_map is not None and not options.id_map.resolve().parent.is_dir():
        raise UsageError(f"--id-map {options.id_map}: no such folder")


def build(options: argparse.Namespace) -> str:
    """Run one build; return the summary line.

    Raises UsageError, DataError, or OSError.
    """
    started = time.monotonic()
    try:
        key = splits.load_key(options.key)
    except ValueError as error:
        raise UsageError(str(error)) from None
    inputs = scan(
        options.input, masks=options.masks, labels=options.labels, reports=options.reports
    )
    if not inputs.films:
        raise DataError(f"{options.input}: no files")
    settings = {
        name: getattr(options, name) for name in ("fit", "lungs", "name", "retrocardiac", "size")
    }
    settings["key_fingerprint"] = splits.fingerprint(key)
    settings["lung_model"] = model_digest(options.lungs)
    with _pool(options.workers) as pool:
        if options.output.exists() and any(options.output.iterdir()):
            _compare(options, settings, pool, inputs)
            summary = f"{options.output}: up to date, nothing changed"
        else:
            with _incomplete(options.output) as work:
                manifest = _write(work, options, key=key, inputs=inputs, pool=pool)
                metadata = records.write_tfds_metadata(
                    work, name=options.name, files=manifest["files"], labels=len(FINDINGS)
                )
                write_manifest(work, {**manifest, "metadata": metadata, "arguments": settings})
            summary = _summary(manifest, inputs, time.monotonic() - started)
    if options.id_map is not None:
        _write_id_map(options.id_map, options, key, inputs)
    return summary


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    """Start worker processes; None stands for this process."""
    if workers == 1:
        yield None
        return
    # Spawned, not forked: a fork would copy whatever threads the caller runs.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool:
        yield pool


def _map(pool: Executor | None, function: Any, items: Sequence[Any], label: str) -> list[Any]:
    """Apply a function to every item, in order of the items, with a progress bar on a terminal."""
    bar = tqdm(total=len(items), desc=label, disable=None, leave=False)
    with bar:
        if pool is None:
            made = []
            for item in items:
                made.append(function(item))
                bar.update()
            return made
        futures: list[Future] = [pool.submit(function, item) for item in items]
        for future in as_completed(futures):
            future.result()
            bar.update()
        return [future.result() for future in futures]


def _jobs(inputs: Inputs, pool: Executor | None) -> list[Job]:
    """Join each film with its tables; a patient known to DICOM only is read from the header."""
    empty = Row()
    unknown = [film for film in inputs.films if not inputs.rows.get(film, empty).patient]
    chunks = [
        [inputs.root / film for film in unknown[start : start + 256]]
        for start in range(0, len(unknown), 256)
    ]
    found = _map(pool, patients_of, chunks, "headers")
    patients = dict(zip(unknown, (name for names in found for name in names), strict=True))
    jobs = []
    for film in inputs.films:
        row = inputs.rows.get(film, empty)
        patient = row.patient or patients[film] or f"film:{film}"
        jobs.append(
            Job(
                film=film,
                path=inputs.root / film,
                mask=inputs.masks.get(film),
                row=row,
                report=inputs.reports.get(row.study, Report(findings="", impression="")),
                patient=patient,
                split=row.split or splits.split_of(patient),
            )
        )
    return jobs


def _write(
    work: Path, options: argparse.Namespace, *, key: bytes, inputs: Inputs, pool: Executor | None
) -> dict[str, Any]:
    """Write all shards and rejected.csv into `work`; return the manifest so far."""
    jobs = {job.film: job for job in _jobs(inputs, pool)}
    if len({splits.keyed_id(key, "film", film) for film in jobs}) < len(jobs):
        raise DataError("two films have one id: use another key")
    plan = []
    for split in records.SPLITS:
        members = [film for film in jobs if jobs[film].split == split]
        for index, part in enumerate(splits.shards(members)):
            shard = Shard(
                path=work / f"part-{os.getpid()}-{split}-{index:05d}",
                jobs=tuple(jobs[film] for film in part),
                size=options.size,
                fit=options.fit,
                lungs=options.lungs,
                retrocardiac=options.retrocardiac,
                key=key,
            )
            plan.append((split, shard))
    outcomes = _map(pool, build_shard, [shard for _, shard in plan], "shards")
    rejected = sorted(pair for outcome in outcomes for pair in outcome.rejected)
    _write_rejected(work / "rejected.csv", rejected)
    if not any(outcome.records for outcome in outcomes):
        reasons = Counter(reason for _, reason in rejected).most_common(3)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons)
        raise DataError(f"{options.input}: all {len(rejected)} files were rejected: {told}")
    files = _name_shards(work, options.name, plan, outcomes)
    digests = {film: digest for outcome in outcomes for film, digest in outcome.digests.items()}
    return {
        "name": options.name,
        "labels": list(FINDINGS),
        "size": options.size,
        "fit": options.fit,
        "files": files,
        "counts": _counts(files, plan, outcomes, len(rejected)),
        "inputs": _inputs_digest(inputs, digests),
        "generator": _generator(options.input),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _name_shards(
    work: Path, name: str, plan: list[tuple[str, Shard]], outcomes: list[Outcome]
) -> list[dict[str, Any]]:
    """Number the shards that hold a record as TFDS does, and remove the others."""
    files = []
    for split in records.SPLITS:
        kept = []
        for (of_split, shard), outcome in zip(plan, outcomes, strict=True):
            if of_split == split and outcome.records:
                kept.append((shard, outcome))
            elif of_split == split:
                shard.path.unlink()
        for index, (shard, outcome) in enumerate(kept):
            final = work / records.shard_name(name, split=split, index=index, total=len(kept))
            shard.path.rename(final)
            files.append(describe(final, split=split, records=outcome.records))
    return files


def _counts(
    files: list[dict[str, Any]],
    plan: list[tuple[str, Shard]],
    outcomes: list[Outcome],
    rejected: int,
) -> dict[str, Any]:
    by_split: Counter[str] = Counter()
    for entry in files:
        by_split[entry["split"]] += entry["records"]
    masks = Counter(source for outcome in outcomes for source in outcome.mask_sources)
    return {
        "films": sum(by_split.values()),
        "rejected": rejected,
        "splits": dict(by_split),
        "masks": dict(sorted(masks.items())),
    }


def _inputs_digest(inputs: Inputs, digests: dict[str, str]) -> str:
    tables = {f"\0table {path.name}": sha256_of(path) for path in inputs.tables}
    return digest_of({**digests, **tables})


def _generator(folder: Path) -> dict[str, Any]:
    """Say what wrote the shards, and what made the films if they are phantoms."""
    made: dict[str, Any] = {"program": "data_prep.build", "record_format": FORMAT}
    phantoms = folder / "phantoms.json"
    if phantoms.is_file():
        try:
            made["phantoms"] = json.loads(phantoms.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{phantoms}: unreadable ({type(error).__name__})") from None
    return made


def _compare(
    options: argparse.Namespace,
    settings: dict[str, Any],
    pool: Executor | None,
    inputs: Inputs,
) -> None:
    """Check that an existing output is what this command would write; UsageError if not."""
    if not (options.output / MANIFEST).is_file():
        raise UsageError(f"--output {options.output}: not empty, and no data set")
    manifest = load_manifest(options.output)
    for name, value in settings.items():
        there = manifest.get("arguments", {}).get(name)
        if there != value:
            raise UsageError(f"{options.output} was built with {name}={there!r}, not {value!r}")
    jobs = _jobs(inputs, pool)
    digests = _map(pool, digest_film, jobs, "checking")
    found = _inputs_digest(
        inputs, {job.film: digest for job, digest in zip(jobs, digests, strict=True)}
    )
    if found != manifest["inputs"]:
        raise UsageError(f"{options.output} was built from other inputs: choose another --output")


@contextlib.contextmanager
def _incomplete(output: Path) -> Iterator[Path]:
    """Give a locked folder beside the output that takes its name once all went well."""
    work = output.with_name(output.name + ".incomplete")
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in work.iterdir():  # of a run that was killed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield work
        work.rename(output)
    except (DataError, UsageError):
        shutil.rmtree(work)
        raise
    finally:
        os.close(handle)


def _write_rejected(path: Path, rejected: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("file", "reason"), *rejected])


def _write_id_map(path: Path, options: argparse.Namespace, key: bytes, inputs: Inputs) -> None:
    """Write stored id -> input path for the films that were kept, readable by the owner only."""
    with (options.output / "rejected.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rejected = {row["file"] for row in csv.DictReader(file)}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(handle, 0o600)  # of a file that was there before
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "path"))
        for film in inputs.films:
            if film not in rejected:
                writer.writerow((splits.keyed_id(key, "film", film), inputs.root / film))


def _summary(manifest: dict[str, Any], inputs: Inputs, seconds: float) -> str:
    counts = manifest["counts"]
    per_split = ", ".join(f"{name} {count}" for name, count in counts["splits"].items())
    masks = ", ".join(f"{name} {count}" for name, count in counts["masks"].items())
    why = " (see rejected.csv)" if counts["rejected"] else ""
    line = (
        f"{counts['films']} films ({per_split}), {counts['rejected']} rejected{why}, masks: {masks}"
    )
    if inputs.orphans:
        line += f", {inputs.orphans} rows of labels without a film"
    if inputs.rows and len(inputs.rows) < len(inputs.films):
        line += f", {len(inputs.films) - len(inputs.rows)} films without a row of labels"
    empty = [name for name in ("train", "val", "test") if not counts["splits"].get(name)]
    if empty:
        line += f", no patient fell into {' and '.join(empty)}: few patients"
    return f"{line}, {seconds:.1f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        print(build(parse_arguments(arguments)))
    except UsageError as error:
        print(f"data_prep.build: {error}", file=sys.stderr)
        return USAGE
    except DataError as error:
        print(f"data_prep.build: {error}", file=sys.stderr)
        return BAD_DATA
    except BlockingIOError:
        print("data_prep.build: another build is writing this output", file=sys.stderr)
        return LOCKED
    except KeyboardInterrupt:
        print("data_prep.build: stopped; the output was not written", file=sys.stderr)
        return INTERRUPTED
    except (OSError, BrokenProcessPool) as error:
        print(f"data_prep.build: {type(error).__name__}: {error}", file=sys.stderr)
        return DISK
    return 0


if __name__ == "__main__":
    sys.exit(main())
