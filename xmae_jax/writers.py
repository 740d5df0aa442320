"""What a run writes for people: JSON lines, TensorBoard, pictures; from process 0 only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore


def write_atomic(path: Path, text: str | bytes, *, private: bool = False) -> None:
    """Write a file so that it is there whole or not at all, even after a loss of power.

    private: the file and its folder are their owner's alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if private:
        path.parent.chmod(0o700)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
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
        (directory / "tb").mkdir(exist_ok=True)
        # Written by this thread: SummaryWriter's own would die of a full disk, and block the run.
        self._board = EventsWriter(str(directory / "tb" / "events"))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line and flush it; numbers go to TensorBoard as `kind/name`."""
        if not self.active:
            return
        line = {"step": step, "kind": kind, **values}
        # JSON has no NaN; `loss_hex` still says it.
        line = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from None
        scalars = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float))
        ]
        summary = Summary(value=scalars)
        self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        if self.active:
            self._file.close()
            self._board.close()


PANEL = 224
"""Side of a panel of a page, in pixels."""

_GAP = 8
_HEAD = 30


_UNSEEN = np.array([0.20, 0.30, 0.48])
"""A blue that no film has, for what was not shown or not scored."""


def _panel(pixels: Float[np.ndarray, "h w"] | Float[np.ndarray, "h w 3"]) -> Image.Image:
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB").resize((PANEL, PANEL), Image.Resampling.LANCZOS)


def outlined(
    image: UInt8[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "m m"] | None
) -> Image.Image:
    """Draw a film with the contour of a mask, if there is one."""
    panel = _panel(image[:, :, 0].astype(np.float32) / 255)
    if mask is None:
        return panel
    at_panel_size = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(panel.size)
    pixels = np.asarray(panel).copy()
    pixels[find_boundaries(np.asarray(at_panel_size) > 127)] = (255, 140, 0)
    return Image.fromarray(pixels)


def reconstruction_panels(
    image: UInt8[np.ndarray, "h w 1"],
    region: UInt8[np.ndarray, "m m"],
    hidden: Bool[np.ndarray, "gh gw"],
    target: Bool[np.ndarray, "gh gw"],
    reconstruction: Float[np.ndarray, "h w 1"],
) -> dict[str, Image.Image]:
    """Draw what a masked auto-encoder saw of one film and made of it, five panels.

    Blue is what was hidden in the third panel, and what is not scored (visible patches and
    padding) in the last. The fourth shows predictions where there is a target, the film elsewhere.
    """
    film = image[:, :, 0].astype(np.float32) / 255
    scale = film.shape[0] // hidden.shape[0]
    unseen, aim = (np.kron(m, np.ones((scale, scale))).astype(bool) for m in (hidden, target))
    guess = np.where(aim, reconstruction[:, :, 0], film)

    grey = np.repeat(film[:, :, None], 3, axis=2)
    error = np.repeat((4 * np.abs(guess - film))[:, :, None], 3, axis=2)
    return {
        "film": _panel(film),
        "masked by": outlined(image, region > 0),
        "visible": _panel(np.where(unseen[:, :, None], _UNSEEN, grey)),
        "visible + predicted": _panel(guess),
        "error x 4": _panel(np.where(aim[:, :, None], error, _UNSEEN)),
    }


def contact_sheet(
    path: Path, films: UInt8[np.ndarray, "b h w 1"], *, names: Sequence[str], title: str
) -> None:
    """Write films under their names as one PNG, eight in a row."""
    side, font = PANEL // 2, ImageFont.load_default(11)
    columns, lines = min(8, len(films)), -(-len(films) // 8)
    width = max(_GAP + columns * (side + _GAP), 560)
    page = Image.new("RGB", (width, _HEAD + lines * (side + 24)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 6), title, "black", ImageFont.load_default(15))
    for i, (film, name) in enumerate(zip(films, names, strict=True)):
        x, y = _GAP + i % 8 * (side + _GAP), _HEAD + i // 8 * (side + 24)
        page.paste(Image.fromarray(film[:, :, 0]).resize((side, side)), (x, y))
        draw.text((x, y + side + 3), name, "black", font)
    _write_picture(path, page)


def picture(path: Path, rows: Sequence[Mapping[str, Image.Image]], *, title: str) -> None:
    """Write rows of equal panels under their names as one PNG, atomically."""
    names = list(rows[0])
    width = _GAP + len(names) * (PANEL + _GAP)
    page = Image.new("RGB", (width, 2 * _HEAD + len(rows) * (PANEL + _GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    draw.text((_GAP, 6), title, "black", font)
    for column, name in enumerate(names):
        x = _GAP + column * (PANEL + _GAP)
        draw.text((x, _HEAD + 4), name, "black", font)
        for row, panels in enumerate(rows):
            page.paste(panels[name], (x, 2 * _HEAD + row * (PANEL + _GAP)))
    _write_picture(path, page)


def shaded_texts(path: Path, texts: Sequence[Sequence[tuple[str, float]]], *, title: str) -> None:
    """Write texts as one PNG, each piece on white (0) to red (1)."""
    width, step, font = 4 * PANEL, 18, ImageFont.load_default(13)
    placed, x, y = [], _GAP, _HEAD
    for text in texts:
        for piece, shade in text:
            size = font.getlength(piece)
            if x + size > width - _GAP:
                x, y = _GAP, y + step
            placed.append((x, y, size, piece, shade))
            x += size
        x, y = _GAP, y + step + _GAP
    page = Image.new("RGB", (width, y + _GAP), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, 6), title, "black", ImageFont.load_default(15))
    for x, y, size, piece, shade in placed:
        pale = round(255 * (1 - 0.7 * shade))
        draw.rectangle((x, y, x + size, y + step - 2), (255, pale, pale))
        draw.text((x, y), piece, "black", font)
    _write_picture(path, page)


def _write_picture(path: Path, page: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    page.save(partial, format="PNG")
    os.replace(partial, path)
