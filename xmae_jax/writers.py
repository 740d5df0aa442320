"""What a run writes for people: JSON lines, TensorBoard, pictures; from process 0 only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


class Writer:
    """The log of one run; silent on all processes but the first."""

    def __init__(self, workdir: str | os.PathLike, *, active: bool):
        self.active = active
        if not active:
            return
        directory = Path(workdir)
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "metrics.jsonl"
        if log.exists():
            # A killed process may have left half a line; what follows would be lost with it.
            whole = log.read_bytes()
            if not whole.endswith(b"\n"):
                os.truncate(log, whole.rfind(b"\n") + 1)
        self._file = log.open("a")
        self._board = tensorboardX.SummaryWriter(str(directory / "tb"), flush_secs=30)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line and flush it; numbers go to TensorBoard as `kind/name`."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        if self.active:
            self._file.close()
            self._board.close()


_PANEL = 224
_GAP = 8
_HEAD = 30


def _panel(pixels: Float[np.ndarray, "h w"] | Float[np.ndarray, "h w 3"]) -> Image.Image:
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB").resize((_PANEL, _PANEL), Image.Resampling.LANCZOS)


def reconstruction_panels(
    image: UInt8[np.ndarray, "h w 1"],
    lung: UInt8[np.ndarray, "m m"],
    hidden: Bool[np.ndarray, "gh gw"],
    target: Bool[np.ndarray, "gh gw"],
    reconstruction: Float[np.ndarray, "h w 1"],
) -> dict[str, Image.Image]:
    """Draw what a masked auto-encoder saw of one film and made of it, five panels."""
    film = image[:, :, 0].astype(np.float32) / 255
    scale = film.shape[0] // hidden.shape[0]
    unseen, aim = (np.kron(m, np.ones((scale, scale))).astype(bool) for m in (hidden, target))
    guess = np.where(unseen, reconstruction[:, :, 0], film)

    at_panel_size = Image.fromarray(lung * np.uint8(255)).resize((_PANEL, _PANEL))
    outline = find_boundaries(np.asarray(at_panel_size) > 127)
    contour = np.asarray(_panel(film)).copy()
    contour[outline] = (255, 140, 0)
    error = np.where(aim, np.abs(guess - film), 0.0)
    return {
        "film": _panel(film),
        "contour": Image.fromarray(contour),
        "visible": _panel(np.where(unseen, 0.35, film)),
        "reconstruction": _panel(guess),
        "error x 4": _panel(4 * error),
    }


def picture(path: Path, rows: Sequence[Mapping[str, Image.Image]], *, title: str) -> None:
    """Write rows of equal panels under their names as one PNG, atomically."""
    names = list(rows[0])
    width = _GAP + len(names) * (_PANEL + _GAP)
    page = Image.new("RGB", (width, 2 * _HEAD + len(rows) * (_PANEL + _GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    draw.text((_GAP, 6), title, "black", font)
    for column, name in enumerate(names):
        x = _GAP + column * (_PANEL + _GAP)
        draw.text((x, _HEAD + 4), name, "black", font)
        for row, panels in enumerate(rows):
            page.paste(panels[name], (x, 2 * _HEAD + row * (_PANEL + _GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    page.save(partial, format="PNG")
    os.replace(partial, path)
