"""Draw synthetic chest radiographs with planted findings, exact lung masks, labels and reports.

    python -m data_prep.phantoms --output DIR --count N --seed S

The films are the default data of the quick start, the tests and the notebooks. They look like chest
films at a glance and stand in for none: nothing learnt from them says anything about patients.
The generator is frozen; VERSION changes whenever a film, a label or a text would change, and stands
in every manifest. Film i depends on (seed, i, size) and `--nodule-...` only. A logistic
regression on 16 x 16 pixels must stay under a macro AUROC of 0.75, so that a result on phantoms
means something.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep import phantom_frontal, phantom_lateral
from data_prep.phantom_anatomy import (
    FINDINGS,
    NODULES,
    Nodules,
    draw_film,
    draw_patient,
    draw_study,
    locate,
)
from data_prep.phantom_exposure import expose
from data_prep.phantom_findings import plant
from data_prep.phantom_raster import Draws, Frame
from data_prep.phantom_text import write

VERSION = 2  # the texts are other than those of 1; films and labels are the same
SOURCE = f"phantom-v{VERSION}"
LICENCE = "CC0-1.0"  # drawings of nobody
USAGE_ERROR = 64
IO_ERROR = 74
MACRO_AUROC_LIMIT = 0.75
_TEXT = 11
_BASELINE_FILMS = 300  # fewer films give no steady AUROC


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic film and everything that is known about it."""

    image: np.ndarray  # uint8 [h w]
    lung_mask: np.ndarray  # bool [h w]
    labels: dict[str, int]
    patient: str
    study: str
    view: str
    findings: str
    impression: str
    sex: str
    age: int
    boxes: dict[str, tuple[float, float, float, float]]  # y0, x0, y1, x1 as shares of the film
    film: np.ndarray  # float32 [h w] in [0, 1], before rounding to 8 bits


def draw(seed: int, index: int, *, size: int = 512, nodules: Nodules = NODULES) -> Phantom:
    """Draw film `index` of the series `seed`; it depends on these arguments only."""
    patient, place = locate(seed, index)
    who = draw_patient(seed, patient)
    study, view = draw_study(seed, patient, place, nodules=nodules)
    film = draw_film(seed, patient, place, view)
    frame = Frame(size, film.angle, film.scale, film.shift)
    body = phantom_lateral if view == "LATERAL" else phantom_frontal
    chest, layers = body.draw(who, study, film, frame)
    boxes = plant(study, chest, layers, frame)
    pixels = expose(layers.attenuation + layers.vessels, film)
    findings, impression = write(study, Draws(seed, _TEXT, patient, study.index))
    return Phantom(
        image=np.round(pixels * 255).astype(np.uint8),
        lung_mask=layers.lung > 0.5,
        labels=study.labels,
        patient=f"ph-{seed}-{patient:06d}",
        study=f"ph-{seed}-{patient:06d}-{study.index}",
        view=view,
        findings=findings,
        impression=impression,
        sex=who.sex,
        age=who.age,
        boxes=boxes,
        film=pixels,
    )


def pixel_baseline(
    images16: np.ndarray, labels: Mapping[str, np.ndarray], patients: np.ndarray
) -> dict:
    """Score a logistic regression on block means [n 16 16], patients kept apart in four folds.

    Returns {"macro_auroc": float, "auroc": {finding: float}}; needs scikit-learn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels = np.asarray(images16, np.float64).reshape(len(images16), -1)
    _, groups = np.unique(np.asarray(patients), return_inverse=True)
    scores = {}
    for name, values in labels.items():
        truth, per_fold = np.asarray(values), []
        for fold in range(4):
            held = groups % 4 == fold
            if len(set(truth[held])) < 2 or len(set(truth[~held])) < 2:
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            model.fit(pixels[~held], truth[~held])
            per_fold.append(roc_auc_score(truth[held], model.decision_function(pixels[held])))
        if per_fold:
            scores[name] = float(np.mean(per_fold))
    return {"macro_auroc": float(np.mean(list(scores.values()))), "auroc": scores}


def block_means(image: np.ndarray, side: int = 16) -> np.ndarray:
    """Average a square film to [side side]."""
    n = image.shape[0] // side
    return image.reshape(side, n, side, n).mean((1, 3), dtype=np.float64)


@dataclass(frozen=True)
class _Row:
    """What the tables need of one film."""

    label: dict[str, object]
    report: dict[str, object]
    means: np.ndarray


def _make(index: int, *, output: str, seed: int, size: int, nodules: Nodules, dicom: bool) -> _Row:
    """Draw one film and write its files."""
    phantom = draw(seed, index, size=size, nodules=nodules)
    stem, root = f"ph_{index:06d}", Path(output)
    name = f"images/{stem}.{'dcm' if dicom else 'png'}"
    data = _dicom(phantom, seed=seed, index=index) if dicom else _png(phantom.image)
    (root / name).write_bytes(data)
    mask = phantom.lung_mask.astype(np.uint8) * 255
    (root / "lung_masks" / f"{stem}.png").write_bytes(_png(mask))
    label = {
        "image": name,
        "patient_id": phantom.patient,
        "study_id": phantom.study,
        "view": phantom.view,
        **phantom.labels,
        "sex": phantom.sex,
        "age": phantom.age,
        "source": SOURCE,
        "licence": LICENCE,
        "mask_licence": LICENCE,
        "generator_version": VERSION,
    }
    report = {
        "study_id": phantom.study,
        "patient_id": phantom.patient,
        "source": SOURCE,
        "findings": phantom.findings,
        "impression": phantom.impression,
        "images_present": name,
    }
    return _Row(label, report, block_means(phantom.image))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _dicom(phantom: Phantom, *, seed: int, index: int) -> bytes:
    from data_prep.phantom_dicom import encode

    return encode(
        phantom.film,
        source=SOURCE,
        seed=seed,
        index=index,
        patient=phantom.patient,
        study=phantom.study,
        view=phantom.view,
        sex=phantom.sex,
        age=phantom.age,
    )


def _table(path: Path, rows: list[dict[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(path, buffer.getvalue())


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _rows(args: argparse.Namespace) -> Iterator[_Row]:
    """Draw all films in order, over processes if asked."""
    make = partial(
        _make,
        output=str(args.output),
        seed=args.seed,
        size=args.size,
        nodules=_nodules(args),
        dicom=args.dicom,
    )
    if args.workers == 1:
        _keep_heap()
        yield from map(make, range(args.count))
        return
    # spawn: a notebook's process may hold threads that do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=_keep_heap) as pool:
        yield from pool.map(make, range(args.count), chunksize=8)


def _keep_heap() -> None:
    """Make glibc keep freed memory: a large block given back raises its limits.

    Without this, every temporary array is a fresh map of zeroed pages, a quarter of the time.
    """
    np.empty(31 << 20, np.uint8)


def generate(args: argparse.Namespace) -> dict:
    """Write films, masks and tables, then the manifest; return the manifest."""
    for folder in ("images", "lung_masks"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
    bar = tqdm(_rows(args), total=args.count, unit="film", disable=not sys.stderr.isatty())
    rows = list(bar)
    _sweep(args.output, {Path(str(row.label["image"])).name for row in rows})
    _table(args.output / "labels.csv", [row.label for row in rows])
    reports: dict[object, dict[str, object]] = {}
    for row in rows:
        known = reports.setdefault(row.report["study_id"], row.report)
        if known is not row.report:
            known["images_present"] = f"{known['images_present']};{row.report['images_present']}"
    _table(args.output / "reports.csv", list(reports.values()))
    manifest = {**_wanted(args), "pixel_logistic_macro_auroc": _baseline(rows)}
    _replace(args.output / "phantoms.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _sweep(output: Path, kept: set[str]) -> None:
    """Remove films that an interrupted run with other arguments left behind."""
    stems = {Path(name).stem for name in kept}
    for path in output.glob("images/ph_*"):
        if path.name not in kept:
            path.unlink()
    for path in output.glob("lung_masks/ph_*"):
        if path.stem not in stems:
            path.unlink()


def _baseline(rows: list[_Row]) -> float | None:
    """Print and return the macro AUROC of the pixel baseline, if it can be computed."""
    if len(rows) < _BASELINE_FILMS:
        print(f"pixel baseline: not computed (fewer than {_BASELINE_FILMS} films)")
        return None
    labels = {name: np.array([row.label[name] for row in rows]) for name in FINDINGS}
    patients = np.array([row.label["patient_id"] for row in rows])
    try:
        result = pixel_baseline(np.stack([row.means for row in rows]), labels, patients)
    except ImportError:
        print("pixel baseline: not computed (scikit-learn is not installed; extra [dev])")
        return None
    each = ", ".join(f"{name} {value:.3f}" for name, value in result["auroc"].items())
    print(f"pixel baseline (logistic regression on 16 x 16 pixels): {each}")
    print(f"macro AUROC {result['macro_auroc']:.3f}, to stay under {MACRO_AUROC_LIMIT}")
    return round(result["macro_auroc"], 4)


def _wanted(args: argparse.Namespace) -> dict:
    return {
        "generator": "xmae_jax phantoms",
        "version": VERSION,
        "seed": args.seed,
        "count": args.count,
        "size": args.size,
        "format": "dicom" if args.dicom else "png",
        "nodules": json.loads(json.dumps(asdict(_nodules(args)))),  # tuples as they are read back
    }


def _nodules(args: argparse.Namespace) -> Nodules:
    return Nodules(args.nodule_share, tuple(args.nodule_size), tuple(args.nodule_contrast))


class _Parser(argparse.ArgumentParser):
    """Ends usage errors with 64, as every command of the project does."""

    def error(self, message: str):
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m data_prep.phantoms", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1000, help="films to draw (1000)")
    parser.add_argument("--seed", type=int, default=0, help="which series (0)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (512)")
    usual, pair = NODULES, ("LOW", "HIGH")
    parser.add_argument("--nodule-size", type=float, nargs=2, default=usual.size, metavar=pair,
                        help=f"range of diameters, in film widths {usual.size}")  # fmt: skip
    parser.add_argument("--nodule-contrast", type=float, nargs=2, default=usual.contrast,
                        metavar=pair, help="range of contrasts, as shares of the step from lung"
                        f" to mediastinum {usual.contrast}")  # fmt: skip
    parser.add_argument("--nodule-share", type=float, default=usual.share, metavar="SHARE",
                        help=f"of patients with a nodule ({usual.share})")  # fmt: skip
    parser.add_argument("--dicom", action="store_true", help="write DICOM files, not PNG")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    if args.count < 1 or args.workers < 1 or args.seed < 0:
        parser.error("--count and --workers must be at least 1, --seed at least 0")
    if not 0 <= args.nodule_share <= 1:
        parser.error(f"--nodule-share must lie between 0 and 1, not {args.nodule_share}")
    for name in ("size", "contrast"):
        low, high = getattr(args, f"nodule_{name}")
        if not 0 < low <= high <= 2:
            parser.error(f"--nodule-{name} must rise, between 0 and 2, not {low} {high}")
    if args.size < 64 or args.size % 16:
        parser.error(f"--size must be a multiple of 16 and at least 64, not {args.size}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args, manifest = _parse(argv), None
    known = args.output / "phantoms.json"
    if known.exists():
        # Films drawn before the key was there have nodules as they are by default.
        wanted = _wanted(args)
        manifest = {"nodules": asdict(NODULES)} | json.loads(known.read_text())
        manifest["nodules"] = json.loads(json.dumps(manifest["nodules"]))
        differ = [
            f"{key} {manifest.get(key)!r}, asked {value!r}"
            for key, value in wanted.items()
            if manifest.get(key) != value
        ]
        if differ:
            print(f"{known}: holds other phantoms: {'; '.join(differ)}", file=sys.stderr)
            return USAGE_ERROR
        print(f"{args.output}: {args.count} phantoms already drawn, nothing to do")
        return 0
    try:
        generate(args)
    except OSError as error:
        print(f"{args.output}: {error}", file=sys.stderr)
        return IO_ERROR
    print(f"{args.output}: {args.count} phantoms, generator version {VERSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
