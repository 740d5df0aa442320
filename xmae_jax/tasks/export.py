"""Write a trained model for other people's code, with a card that says where it comes from.

`export/<format>/` is there whole or not at all; a new export takes the place of the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax.config import Config, ConfigError
from xmae_jax.data.manifest import file_digest
from xmae_jax.digest import flatten
from xmae_jax.exports import card, huggingface, provenance, weights
from xmae_jax.exports.huggingface import Parts
from xmae_jax.heads.linear import LinearConfig
from xmae_jax.models import convert
from xmae_jax.optim import merge
from xmae_jax.tasks.model import LoadedRun, load_run, refuse_other_changes
from xmae_jax.tasks.onnx import write_onnx
from xmae_jax.tasks.shown import made_as

About = dict[str, str]
"""Metadata of a file: strings by name."""


def run(config: Config, workdir: Path) -> None:
    """Export the newest checkpoint of a run; ConfigError if it cannot be, or may not be public."""
    loaded = load_run(workdir)
    refuse_other_changes(config, loaded, task="export")
    wanted = config.export
    if not hasattr(loaded.objective, "encoder"):
        raise ConfigError(f"--task=export: objective {config.objective['name']!r} has no encoder")
    origin = provenance.origin_of_run(workdir, step=loaded.step)
    refusals = origin.refusals()
    if wanted.public and refusals:
        told = "\n  ".join(refusals)
        raise ConfigError(f"config.export.public: these weights may not be public:\n  {told}")
    name = wanted.name or config.name
    about = {"name": name, provenance.KEY: provenance.to_json(origin)}
    target, fit = workdir / "export" / wanted.format, made_as(loaded)["fit"]
    about[convert.KEY] = _told(loaded)
    with _replacing(target) as folder:
        use, notes = _WRITERS[wanted.format](folder, loaded, name, about)
        told = card.Card(
            name=name,
            format=wanted.format,
            findings=tuple(getattr(loaded.objective, "findings", ())),
            image_size=loaded.config.image_size,
            fit=fit,
            model=_model(loaded),
            use="\n\n".join((use, *notes)),
            origin=origin,
            scores=list(_scores(workdir)),
            files=[(p.name, p.stat().st_size, file_digest(p)) for p in sorted(folder.iterdir())],
        )
        (folder / "README.md").write_text(card.write(told), encoding="utf-8")
    for note in notes:
        print(f"note: {note}")
    print(f"exported: {target}, step {loaded.step:,}" + ", averaged" * ("ema" in loaded.extra))
    if refusals and not wanted.public:
        print(f"not for the public; {target / 'README.md'} says why")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the target's name once all went well."""
    partial, old = (target.with_name(f".{target.name}.{what}") for what in ("partial", "old"))
    for path in (partial, old):
        if path.exists():  # of an export that was killed
            shutil.rmtree(path)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if target.exists():
        target.rename(old)
    partial.rename(target)
    if old.exists():
        shutil.rmtree(old)


def parameters(loaded: LoadedRun) -> dict[str, np.ndarray]:
    """Return path -> float32 array of what predictions use: the average where the run keeps one."""
    params = merge(loaded.extra.get("ema", loaded.params), loaded.frozen)
    return {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()}


def _told(loaded: LoadedRun) -> str:
    """Write what names and shapes do not tell, so that we can read our own files back."""
    decoder = getattr(loaded.objective, "decoder", None)
    norm_pix_loss = getattr(loaded.objective, "norm_pix_loss", None)
    heads = None if decoder is None else decoder.heads
    told = convert.Told(loaded.objective.encoder, heads, norm_pix_loss)
    return json.dumps(dataclasses.asdict(told), sort_keys=True)


def _parts(loaded: LoadedRun) -> Parts:
    o = loaded.objective
    head, decoder = getattr(o, "head", None), getattr(o, "decoder", None)
    more = {}
    if decoder is not None:
        more = dict(
            decoder=decoder,
            mask_ratio=1 - o.mask.keep / (o.grid[0] * o.grid[1]),
            norm_pix_loss=o.norm_pix_loss,
        )
    return Parts(
        encoder=o.encoder,
        image_size=o.image_size,
        fit=made_as(loaded)["fit"],
        flat=parameters(loaded),
        findings=tuple(getattr(o, "findings", ())),
        linear_cls=isinstance(head, LinearConfig) and (head.pool, head.layers) == ("cls", 1),
        **more,
    )


def _safetensors(folder: Path, loaded: LoadedRun, name: str, about: About) -> tuple[str, list[str]]:
    """Write one file with the names of timm, and of facebookresearch/mae for the decoder."""
    parts = _parts(loaded)
    if parts.encoder.stem == "hybrid":
        raise ConfigError("config.export.format: timm and MAE have no names for a hybrid stem")
    table = "TIMM" if parts.decoder is None else "MAE"
    arrays, left = weights.renamed(parts.flat, table)
    arrays = weights.with_positions(
        arrays,
        table,
        flat=parts.flat,
        encoder=parts.encoder,
        grid=parts.grid,
        decoder=parts.decoder.width if parts.decoder else None,
    )
    of_head = {key: array for key, array in left.items() if key.startswith("head/")}
    rest = {key: array for key, array in left.items() if key not in of_head}
    named = weights.head(of_head, linear_cls=parts.linear_cls) if of_head else {}
    weights.write(
        folder / f"{name}.safetensors",
        {**arrays, **named, **weights.ours(rest)},
        about,
    )
    kept = sorted(rest) + sorted(set(of_head) if not parts.linear_cls else ())
    notes = [f"parameters without a name in timm keep ours: {', '.join(kept)}"] if kept else []
    if of_head and not parts.linear_cls:
        notes.append("timm's own head reads CLS and is not this one; format=onnx has it as it is")
    use = f"""```python
from safetensors.numpy import load_file

weights = load_file("{name}.safetensors")  # by the names of timm and facebookresearch/mae
```"""
    return use, notes


def _hf(folder: Path, loaded: LoadedRun, name: str, about: About) -> tuple[str, list[str]]:
    try:
        kind, apart = huggingface.write_folder(folder, _parts(loaded), about)
    except huggingface.NoSuchClass as error:
        raise ConfigError(f"config.export.format: Hugging Face has no class for {error}") from None
    notes = [
        f"Hugging Face has no class with this {part}: it lies beside, in {part}.safetensors"
        for part in apart
    ]
    size = loaded.config.image_size
    use = f"""```python
import torch
from transformers import {kind}

model = {kind}.from_pretrained("FOLDER")  # where this card is
output = model(torch.zeros(1, 1, {size}, {size}))  # [films, 1, height, width], from -1 to 1
```"""
    return use, notes


_Writer = Callable[[Path, LoadedRun, str, About], tuple[str, list[str]]]
_WRITERS: dict[str, _Writer] = {"safetensors": _safetensors, "hf": _hf, "onnx": write_onnx}
"""Each writes its files, and returns how to use them, in Markdown, and what to know."""


def _model(loaded: LoadedRun) -> list[tuple[str, str]]:
    """Say what a model is."""
    o, e = loaded.objective, loaded.objective.encoder
    count = sum(x.size for x in jax.tree.leaves(merge(loaded.params, loaded.frozen)))
    lines = [
        ("encoder", f"{e.depth} blocks of {e.width}, {e.heads} heads, patches of {e.patch_size}"),
        ("trained as", f"{loaded.config.objective['name']}, {loaded.step:,} steps of batch size"
                       f" {loaded.config.batch_size:,}"),
        ("parameters", f"{count:,}, float32" + ", averaged" * ("ema" in loaded.extra)),
    ]  # fmt: skip
    for part in ("decoder", "head"):
        if hasattr(o, part):
            settings = dataclasses.asdict(getattr(o, part)).items()
            lines.append((part, ", ".join(f"{key} {value}" for key, value in settings)))
    return lines


def _scores(workdir: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield name, step and metrics of the newest evaluation of each kind."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in workdir.glob("eval/*/step_*/metrics.json"):
        digits = path.parent.name.removeprefix("step_")
        if digits.isdigit():
            name = path.parents[1].name
            newest[name] = max(newest.get(name, (-1, path)), (int(digits), path))
    for name, (step, path) in sorted(newest.items()):
        with contextlib.suppress(ValueError):  # half of it, of a run at work
            yield name, step, json.loads(path.read_text())
