"""From a ConfigDict to frozen dataclasses: the only reader of a ConfigDict.

Defaults stand in `configs/common.py` and nowhere else, so every field here is required, and a
config that lacks or adds a key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import ml_collections
import pydantic
from ml_collections.config_dict import placeholder

from xmae_jax.attention import Backend
from xmae_jax.data.augment import Augment
from xmae_jax.data.report_text import ReportText
from xmae_jax.models.layers import Remat
from xmae_jax.optim import Grid, OptimConfig

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ConfigError(Exception):
    """A bad config or usage; main exits 64."""


@dataclasses.dataclass(frozen=True)
class TextConfig(ReportText):
    """How studies are read."""

    views: Literal[0, 1, 2]
    """Films of a study, frontal ones first; 0 reads none, and learns text alone."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how they are cut."""

    path: str | tuple[str, ...] | None
    """A shard directory, or several to mix."""
    split: str
    eval_split: str | None
    """Held-out films; None evaluates nothing and draws nothing."""
    mixture: tuple[int, ...] | None
    """Rows of each batch from each directory; None shares them in proportion to their sizes."""
    label_fraction: float
    """Share of the training patients that is used."""
    shots: int | None
    """Use so many positive and so many negative patients for each finding; None uses all."""
    balance: float | None
    """Show films with a finding rarer than this share of films more often; None shows all alike."""
    leave_out_source: str | None
    """Neither train nor choose on records of this `source`, and test on them alone."""
    contour_region: Literal["lungs", "hull"]
    crop_scale: tuple[float, float] | None
    """Share of the film that a random crop covers; None shows whole films."""
    augment: Augment | None
    """How views that know of it change a film for training; None leaves it as it is."""
    threads: int
    workers: int
    """Loader processes; 0 uses threads."""
    bad_records: Literal["fail", "skip"]
    max_bad_share: float
    """Share of rows that may be left out under "skip", of those seen or of an epoch."""
    leaks: Literal["refuse", "allow"]
    """What happens where a patient or a film stands in `split` and in another split too."""
    text: TextConfig | None
    """Reads studies with their reports; None reads films."""

    def __post_init__(self) -> None:
        if self.eval_split == self.split:
            raise ValueError(f"eval_split is the training split, {self.split!r}")
        if not 0 < self.label_fraction <= 1:
            raise ValueError(f"label_fraction must lie in (0, 1], got {self.label_fraction}")
        if self.shots is not None and (self.shots < 1 or self.label_fraction < 1):
            raise ValueError(
                f"shots must be positive and label_fraction then 1, got {self.shots} and"
                f" {self.label_fraction}"
            )
        if self.balance is not None and not 0 < self.balance <= 1:
            raise ValueError(f"balance must lie in (0, 1] or be None, got {self.balance}")
        low, high = self.crop_scale or (1.0, 1.0)
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale must be 0 < low <= high <= 1, got {self.crop_scale}")
        if self.threads < 1 or self.workers < 0:
            raise ValueError("threads must be positive and workers not negative")
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"max_bad_share must lie in [0, 1), got {self.max_bad_share}")

    @property
    def paths(self) -> tuple[str, ...]:
        """All directories."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one may be -1, it takes what the others leave."""

    data: int
    """Parts of a batch whose devices hold all parameters together."""
    fsdp: int
    """Parts of a batch, and of every parameter."""
    tensor: int
    """Parts of heads and hidden units; these devices share their rows."""

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            told = f"data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}"
            raise ValueError(f"sizes are to be positive, and one of them may be -1, got {told}")


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What --task=plan is asked; training does not read it."""

    topology: str | None
    """Chips, such as "v5e:16x16" or "h100:8"; None plans for the devices that are here."""
    search: bool
    """Look for the largest batch a chip, and the cheapest recomputation, that fit."""
    price: float | None
    """Of a chip-hour, in any currency."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What --task=export writes; training does not read it."""

    format: Literal["safetensors", "hf", "onnx"]
    public: bool
    """For anyone: refused where the terms of a data set do not allow it."""
    name: str | None
    """Of the model and its files; None takes the run's."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is to be letters, digits, _, . and -")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What --task=predict writes; training does not read it."""

    output: str | None
    """A folder that is not there yet; None is the next of `predict/1`, `predict/2`, ... of the
    run."""
    heat: Literal["attention", "rollout", "gradient"] | None
    """Where the model looked; None takes what suits the head, see `tasks/heat.py`."""
    maps: int | Literal["all"]
    """Findings of a film that are drawn, at most."""

    def __post_init__(self) -> None:
        if self.maps != "all" and self.maps < 0:
            raise ValueError(f"maps must not be negative, got {self.maps}")


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is left out, and when a run that hangs is ended."""

    spike_sigma: float | None
    watchdog_seconds: float
    heartbeat_seconds: float
    """Silence after which another process is taken for dead; with one process, nothing."""

    def __post_init__(self) -> None:
        if self.spike_sigma is not None and self.spike_sigma <= 0:
            raise ValueError(f"spike_sigma must be positive or None, got {self.spike_sigma}")
        if self.watchdog_seconds <= 0:
            raise ValueError(f"watchdog_seconds must be positive, got {self.watchdog_seconds}")
        if self.heartbeat_seconds < 10:  # a busy host is silent for some seconds now and then
            raise ValueError(f"heartbeat_seconds must be 10 or more, got {self.heartbeat_seconds}")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A head on a frozen encoder: what is tried, and how one of it is chosen."""

    grid: Grid
    metric: Literal["auroc", "average_precision"]
    """Mean over the findings on `data.eval_split` by which a member of the grid is chosen."""


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Where a probe keeps the features of its encoder."""

    dir: str | None
    """Shared by runs, if so wished; None is inside the run directory."""
    max_gb: float
    """Patches are stored if they take no more than this, in 10^9 bytes."""


@dataclasses.dataclass(frozen=True)
class KnnConfig:
    """How nearest neighbours are asked."""

    k: tuple[int, ...]
    """Numbers of neighbours to try; the best on the validation split is kept."""
    features: Literal["cls", "mean"]
    """The class token, or the mean of the valid patches."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k is to be some positive numbers, got {self.k}")


@dataclasses.dataclass(frozen=True)
class DebugConfig:
    """Faults on demand."""

    poison_step: str | None


@dataclasses.dataclass(frozen=True)
class Config:
    """A resolved config; the objective's own part stays a dict until its class reads it."""

    name: str
    seed: int
    total_steps: int
    batch_size: int
    """Rows of the global batch of a step."""
    micro_batch_size: int | None
    """Rows of the global batch that are in memory at once; None is all."""
    warmup_steps: int
    log_every: int
    checkpoint_every: int
    checkpoint_keep: int
    eval_every: int
    eval_rows: int
    """Films of each split that evaluation looks at, at most."""
    picture_every: int
    image_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    attention: Backend
    remat: Remat
    init_from: str | None
    knn: KnnConfig | None
    """Train nothing, and score the encoder by nearest neighbours; None trains."""
    data: DataConfig
    guard: GuardConfig
    debug: DebugConfig
    mesh: MeshConfig
    plan: PlanConfig
    export: ExportConfig
    predict: PredictConfig
    optim: OptimConfig
    probe: ProbeConfig | None
    """Train the objective's head alone, by the protocol of a frozen probe; None trains as usual."""
    cache: CacheConfig
    objective: dict[str, Any]

    def __post_init__(self) -> None:
        positive = "total_steps batch_size log_every checkpoint_every checkpoint_keep eval_every"
        for name in (*positive.split(), "eval_rows", "picture_every", "image_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.warmup_steps < 0 or self.seed < 0:
            raise ValueError("warmup_steps and seed must not be negative")
        if self.rows_at_once < 1 or self.batch_size % self.rows_at_once:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size"
                f" {self.micro_batch_size}"
            )
        # An axis of -1 takes what devices are left; tasks see to that.
        devices = max(self.mesh.data, 1) * max(self.mesh.fsdp, 1)
        if self.rows_at_once % devices:
            raise ValueError(
                f"{self.rows_at_once} rows at once do not split over mesh.data {self.mesh.data} x"
                f" mesh.fsdp {self.mesh.fsdp} devices"
            )
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} is to be letters, digits, _, . and -")
        if self.data.mixture is not None and (
            len(self.data.mixture) != len(self.data.paths)
            or sum(self.data.mixture) != self.batch_size
            or min(self.data.mixture) < 1
        ):
            raise ValueError(
                f"data.mixture {self.data.mixture} is to have a positive number of rows for each of"
                f" {len(self.data.paths)} sources, {self.batch_size} in all"
            )

        if self.optim.grid is not None and self.guard.spike_sigma is not None:
            raise ValueError(
                "guard.spike_sigma judges one loss, and optim.grid has several: set one to None"
            )
        tests = "probe" if self.probe else "knn" if self.knn else None
        if tests and "test" in (self.data.split, self.data.eval_split):
            raise ValueError(
                f"{tests} scores 'test' at its end: train on another split than that"
                " (data.split), and choose on another (data.eval_split)"
            )
        if tests and self.data.text is not None:
            raise ValueError(f"{tests} reads films and no reports: set data.text to None")
        if self.probe is not None:
            self._check_probe()

    def _check_probe(self) -> None:
        """Refuse what a probe has no use for."""
        if self.data.eval_split is None:
            raise ValueError("probe chooses on data.eval_split, which is None")
        for name in ("crop_scale", "augment", "mixture"):
            if getattr(self.data, name) is not None:
                raise ValueError(f"probe reads features of whole films: set data.{name} to None")

    @property
    def rows_at_once(self) -> int:
        """Rows of the global batch that are in memory at once."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size


def build(cls: type[T], tree: dict[str, Any], *, where: str = "config") -> T:
    """Make a dataclass from nested dicts; an error names every key that is at fault."""
    _refuse_nan(tree, where)
    try:
        made = pydantic.TypeAdapter(cls).validate_json(json.dumps(tree), strict=True)
    except pydantic.ValidationError as error:
        lines = []
        for e in error.errors(include_url=False):
            told = e["msg"].removeprefix("Value error, ")
            line = ".".join([where, *map(str, e["loc"])]) + f": {told}"
            lines.append(line if isinstance(e["input"], dict) else f"{line}, got {e['input']!r}")
        raise ConfigError("\n".join(lines)) from None
    _refuse_unknown(tree, dataclasses.asdict(made), where)  # pyright: ignore[reportArgumentType]
    return made


def _refuse_nan(tree: Any, where: str) -> None:
    if isinstance(tree, dict):
        for name, value in tree.items():
            _refuse_nan(value, f"{where}.{name}")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"{where} is {tree}")


def _refuse_unknown(given: Any, known: Any, where: str) -> None:
    if not (isinstance(given, dict) and isinstance(known, dict)):
        return
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"unknown key {where}.{name}{nearest(name, known)}")
        _refuse_unknown(value, known[name], f"{where}.{name}")


def nearest(name: str, known: Any) -> str:
    """Suggest the closest known name, or nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def resolve(config: ml_collections.ConfigDict) -> Config:
    """Check a whole ConfigDict, as a user gives it."""
    made = build(Config, json.loads(config.to_json()))
    if made.optim.grid is not None:  # a probe sets it for one of its phases
        raise ConfigError("config.optim.grid: set it to None; what a probe tries is probe.grid")
    return made


def objective_of(config: Config, objectives: dict[str, type]) -> Any:
    """Build the objective that a config names."""
    given = dict(config.objective)
    name = given.pop("name", None)
    if name not in objectives:
        raise ConfigError(
            f"config.objective.name is {name!r}; known: {', '.join(sorted(objectives))}"
        )
    names = ("image_size", "compute_dtype", "attention", "remat")
    shared = {name: getattr(config, name) for name in names}
    return build(objectives[name], {**shared, **given}, where="config.objective")


def to_json(config: Config) -> str:
    """Write a config as stable JSON."""
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True) + "\n"


def from_json(path: str | os.PathLike) -> ml_collections.ConfigDict:
    """Read a saved config as data: lists become tuples, and a null may take any value."""

    def value(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: value(inner) for name, inner in x.items()}
        if isinstance(x, list):
            return tuple(value(inner) for inner in x)
        return placeholder(object) if x is None else x

    try:
        tree = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    return ml_collections.ConfigDict(value(tree))


def differences(old: str, new: str) -> list[str]:
    """List what differs between two configs as JSON, a line each."""

    def flat(tree: Any, where: str = "config") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {where: tree}
        return {k: v for n, x in tree.items() for k, v in flat(x, f"{where}.{n}").items()}

    a, b = flat(json.loads(old)), flat(json.loads(new))
    names = sorted(n for n in a.keys() | b.keys() if a.get(n) != b.get(n))
    return [f"{n}: {a.get(n)!r} in the run directory, {b.get(n)!r} now" for n in names]
