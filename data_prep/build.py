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
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep import splits
from data_prep.adapters import ADAPTERS
from data_prep.arguments import (
    BAD_DATA,
    DISK,
    INTERRUPTED,
    LOCKED,
    USAGE,
    UsageError,
    directory_of,
    parse_arguments,
)
from data_prep.contours import model_digest
from data_prep.duplicates import check_keys
from data_prep.films import Job, Settings
from data_prep.finish import REJECTED, Policy, finish
from data_prep.inputs import Inputs, digest_of, sha256_of
from data_prep.jobs import jobs_of, licensed, notes_of
from data_prep.parts import Part, Recipe, Workers, build_part, digest_job, plan_parts
from xmae_jax.data.index import INDEX, Index, read_index
from xmae_jax.data.manifest import (
    FORMAT,
    MANIFEST,
    DataError,
    check,
    load_manifest,
    write_manifest,
)
from xmae_jax.data.records import FINDINGS
from xmae_jax.seal import json_digest

_STORED = (
    "adapter",
    "codec",
    "duplicates",
    "fit",
    "frames",
    "licences",
    "lungs",
    "name",
    "retrocardiac",
    "size",
)  # arguments, in the manifest
_PACKAGES = tuple(
    "array_record imagehash jax numpy opencv-python-headless pillow pydicom pyjpegls python-gdcm"
    " pylibjpeg-openjpeg scikit-image scipy simplejpeg tensorflow-datasets".split()
)
Run = Callable[[Sequence[Part], Recipe], None]


def build(options: argparse.Namespace) -> str:
    """Run one build; return the summary line.

    Raises UsageError, DataError, or OSError.
    """
    started = time.monotonic()
    try:
        key = splits.load_key(options.key)
    except (ValueError, IsADirectoryError) as error:
        raise UsageError(f"--key {options.key}: {error}") from None
    inputs = ADAPTERS[options.adapter](
        options.input, masks=options.masks, labels=options.labels, reports=options.reports
    )
    inputs = licensed(inputs, options.licences)
    if not inputs.films:
        raise DataError(f"{options.input}: no files that may be read")
    policy = Policy(
        duplicates=options.duplicates,
        exclude=tuple(one for path in options.exclude for one in _excluded(path)),
        allow_other_keys=options.allow_other_keys,
        key=splits.fingerprint(key),
    )
    arguments = json.loads(json.dumps({name: getattr(options, name) for name in _STORED}))
    arguments["exclude"] = sorted(
        load_manifest(directory_of(path))["metadata"][INDEX] for path in options.exclude
    )
    arguments["key_fingerprint"] = policy.key
    recipe = _recipe(options)
    arguments["lung_model"] = dict(recipe.versions)["lung_model"]
    if policy.exclude and not options.allow_other_keys:
        check_keys(policy.exclude, policy.key)
    run = _beam(options) if options.runner == "beam" else None
    with Workers(options.workers) as workers:
        jobs = jobs_of(inputs, workers)
        notes = notes_of(jobs, inputs)
        for note in notes:
            print(f"note: {note}")
        if options.output.exists() and any(options.output.iterdir()):
            _compare(options, arguments, workers.map(lambda job, _: digest_job(job), jobs), inputs)
            _clear(options.output)
            summary = f"{options.output}: up to date, nothing changed"
        else:
            with _incomplete(options.output) as work:
                parts = _plan(work, jobs)
                (run or _locally(workers))(parts, recipe)
                about = {
                    "name": options.name,
                    "labels": list(FINDINGS),
                    "size": options.size,
                    "fit": options.fit,
                    "codec": options.codec,
                    "notes": notes,
                    "generator": _generator(options.input),
                    "versions": dict(recipe.versions),
                    "arguments": arguments,
                }
                manifest, digests = finish(
                    work / "final", parts, refused=inputs.refused, policy=policy, about=about
                )
                manifest["inputs"] = _inputs_digest(inputs, digests)
                write_manifest(work / "final", manifest)
            summary = _summary(manifest, inputs, time.monotonic() - started)
    if options.id_map is not None:
        _write_id_map(options.id_map, options, key, inputs)
    return summary


def _recipe(options: argparse.Namespace) -> Recipe:
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    versions = {name: _version(name) for name in _PACKAGES}
    versions |= {"lung_model": model_digest(options.lungs) or "none", "code": _code()}
    return Recipe(settings, options.key.resolve(), tuple(versions.items()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # of an extra
        return "none"


def _code() -> str:
    """Hash the sources that records depend on: parts of another version are made again."""
    root = Path(__file__).parents[1]
    folders = ("data_prep", "xmae_jax/data", "xmae_jax/models", "xmae_jax/tasks")
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return digest_of({path.relative_to(root).as_posix(): sha256_of(path) for path in paths})


def _excluded(path: Path) -> list[Index]:
    return [*read_index(directory_of(path)).values()]


def _plan(work: Path, jobs: Sequence[Job]) -> list[Part]:
    """Plan all parts, and remove what is none of them."""
    folder = work / "parts"
    parts = plan_parts(folder, jobs)
    planned = {path for part in parts for path in (part.path, part.notes)}
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path not in planned:
            path.unlink()
    there = sum(part.notes.exists() for part in parts)
    if there:
        print(f"going on: {there} of {len(parts)} shards are there")
    return parts


def _locally(workers: Workers) -> Run:
    """Make parts in this machine's processes, with a progress bar."""

    def run(parts: Sequence[Part], recipe: Recipe) -> None:
        films = sum(len(part.jobs) for part in parts)
        bar = tqdm(total=films, desc="films", unit="file", disable=None, leave=False)
        lock, rejects = threading.Lock(), 0

        def tell(done: int, rejected: int) -> None:
            nonlocal rejects
            with lock:
                rejects += rejected
                bar.set_postfix(rejected=rejects, refresh=False)
                bar.update(done)

        with bar:
            workers.map(lambda part, box: build_part(part, recipe, box, tell=tell), parts)

    return run


def _beam(options: argparse.Namespace) -> Run:
    """Make parts by Apache Beam."""
    try:
        from data_prep import beam  # slow to import, and only this runner needs it

        return functools.partial(beam.run, options=shlex.split(options.beam_options))
    except ImportError:
        raise UsageError("--runner beam: needs Apache Beam (extra [beam])") from None
    except ValueError as error:
        raise UsageError(f"--beam-options: {error}") from None


def _inputs_digest(inputs: Inputs, digests: dict[str, str]) -> str:
    tables = {f"\0table {path.name}": sha256_of(path) for path in inputs.tables}
    reports = {"\0reports": json_digest(inputs.reports)}  # which need not be in tables
    return digest_of({**digests, **tables, **reports})


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
    options: argparse.Namespace, arguments: dict[str, Any], digests: list[str], inputs: Inputs
) -> None:
    """Check that an existing output is what this command would write, and whole.

    Raises UsageError if it is another, DataError if it is damaged.
    """
    if not (options.output / MANIFEST).is_file():
        raise UsageError(f"--output {options.output}: not empty, and no data set")
    manifest = load_manifest(options.output)
    for name, value in arguments.items():
        there = manifest.get("arguments", {}).get(name)
        if there != value:
            raise UsageError(
                f"{options.output} was built with {name}={there!r}, not {value!r}: choose another"
                " --output, or remove this one"
            )
    if _inputs_digest(inputs, dict(zip(inputs.films, digests, strict=True))) != manifest["inputs"]:
        raise UsageError(f"{options.output} was built from other inputs: choose another --output")
    check(options.output, manifest)


def _clear(output: Path) -> None:
    """Remove what a run leaves that was killed when its output was whole already."""
    if output.with_name(output.name + ".incomplete").exists():
        with contextlib.suppress(BlockingIOError), _locked(output) as work:
            shutil.rmtree(work)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Give the folder beside an output where one run at a time works."""
    work = output.with_name(output.name + ".incomplete")
    work.mkdir(parents=True, exist_ok=True, mode=0o700)  # its notes name input files
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work
    finally:
        os.close(handle)


@contextlib.contextmanager
def _incomplete(output: Path) -> Iterator[Path]:
    """Give a locked folder whose `final` takes the output's name once all went well.

    Parts that a run before this one made are still in it.
    """
    with _locked(output) as work:
        for path in work.iterdir():
            if path.name != "parts":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (work / "final").mkdir()
        try:
            yield work
        except DataError:  # of no use: the inputs are to change
            shutil.rmtree(work)
            raise
        (work / "final").rename(output)
        shutil.rmtree(work)


def _write_id_map(path: Path, options: argparse.Namespace, key: bytes, inputs: Inputs) -> None:
    """Write stored id -> input path for the films that were kept, readable by the owner only."""
    with (options.output / REJECTED).open(
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
    across = counts["duplicates_across_splits"]
    if across:
        told = " and ".join(f"{count} {kind}" for kind, count in across.items())
        line += f", {told} pairs across splits (see duplicates.csv; --duplicates=drop)"
    empty = [name for name in ("train", "val", "test") if not counts["splits"].get(name)]
    if empty:
        line += f", no film in {' or '.join(empty)}"
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
    except OSError as error:
        print(f"data_prep.build: {type(error).__name__}: {error}", file=sys.stderr)
        return DISK
    return 0


if __name__ == "__main__":
    sys.exit(main())
