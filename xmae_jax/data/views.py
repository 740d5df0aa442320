"""One recipe per objective: a record becomes the arrays that the objective reads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

from xmae_jax.data import transforms
from xmae_jax.data.augment import Augment, warp
from xmae_jax.data.findings import place_of
from xmae_jax.data.lungs import CHANNELS, convention, is_frontal, truths
from xmae_jax.data.records import decode_image, decode_mask
from xmae_jax.data.report_text import ReportText, tokenizer_of
from xmae_jax.data.transforms import WHOLE, Box

FRONTAL, LATERAL, OTHER = range(3)
"""What `view_ids` holds; an empty place is OTHER."""
_LATERAL = re.compile(r"\b(L|LL|RL|LAT|LLAT|RLAT)\b|LATERAL", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class FilmView:
    """A film, its contour and its valid box, under one crop.

    `image` uint8 [s s 1]; `lung` uint8 [m m], zero where the record has no mask; `box` float32 [4]
    (y0, x0, y1, x1), the part that is film and not padding, as shares of the view.
    """

    image_size: int
    grid: tuple[int, int]
    contour_region: Literal["lungs", "hull"]
    crop_scale: tuple[float, float] | None
    """Share of the film that a random crop covers; None shows the whole film."""

    @property
    def mask_size(self) -> int:
        """Side of `lung`: eight cells a patch, fewer where that would pass 320."""
        return self.grid[0] * min(8, max(1, 320 // self.grid[0]))

    def __call__(
        self,
        record: dict[str, Any],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Decode and cut one record; the film goes straight into its slot where it can."""
        slot = slots["image"][:, :, 0] if slots else None
        pixels = decode_image(record["image"], slot if self.crop_scale is None else None)
        (h, w), m = pixels.shape, self.mask_size
        y0, x0, y1, x1 = (float(edge) for edge in record["valid_box"])
        valid = Box(y0 / h, x0 / w, y1 / h, x1 / w)
        crop = WHOLE
        if self.crop_scale is not None:
            crop = transforms.random_crop(rng, valid, scale=self.crop_scale).in_whole_pixels(h, w)
        stored = record["lung_hull" if self.contour_region == "hull" else "lung_mask"]
        if stored is None:
            lung = np.zeros((m, m), bool)
        else:
            lung = transforms.resize_mask(decode_mask(stored), crop, m)
        return {
            "image": transforms.resize_film(pixels, crop, self.image_size, slot)[:, :, None],
            "lung": lung.view(np.uint8),
            "box": np.array(valid.seen_through(crop), np.float32),
        }


@dataclasses.dataclass(frozen=True)
class SegmentView:
    """A film and what is known of its lungs.

    `image` uint8 [s s 1]; `truth` and `known` uint8 [s s 2], for each channel of `data/lungs.py`
    what is inside, and where that is known. A film that is not frontal has nothing to outline.
    """

    image_size: int
    augment: Augment | None
    """How to change the film and its contour together; None shows it as it is."""

    def __call__(
        self,
        record: dict[str, Any],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Decode and lay out one record."""
        pixels, size = decode_image(record["image"]), self.image_size
        truth, known = np.zeros((2, size, size, 2), np.uint8)
        place = self.augment.place(rng, size) if self.augment else None

        def laid(mask: np.ndarray) -> np.ndarray:
            if place is None:
                return transforms.resize_mask(mask, WHOLE, size)
            return warp(mask.astype(np.uint8) * np.uint8(255), place, size) >= 128

        drawn = convention(record)
        if not is_frontal(record["view"]):
            known[:] = 1
        elif record["lung_mask"] is not None and drawn is not None:
            contour, region = (decode_mask(record[name]) for name in ("lung_mask", "lung_hull"))
            inside, unknown = truths(contour, region, drawn=drawn)
            for c in range(len(CHANNELS)):
                truth[:, :, c] = laid(inside[:, :, c])
                known[:, :, c] = ~laid(unknown[:, :, c])
        if self.augment is None or place is None:
            image = transforms.resize_film(pixels, WHOLE, size)
        else:
            image = self.augment.expose(rng, warp(pixels, place, size))
        return {"image": image[:, :, None], "truth": truth, "known": known}


@dataclasses.dataclass(frozen=True)
class LabelledView:
    """A film and what is known of its findings.

    `image` uint8 [s s 1]; `valid` bool [n], the patches of which half is film and not padding;
    `labels` float32 [c] of `findings`: 1 present, 0 absent, -1 uncertain, NaN unknown.
    """

    image_size: int
    grid: tuple[int, int]
    findings: tuple[str, ...]
    crop_scale: tuple[float, float] | None
    """Share of the film that a random crop covers; None shows the whole film."""
    augment: Augment | None
    """How to change the film instead of a crop; None leaves it as it is."""

    def __post_init__(self) -> None:
        if self.crop_scale is not None and self.augment is not None:
            raise ValueError("data.crop_scale and data.augment both cut the film: choose one")

    def __call__(
        self,
        record: dict[str, Any],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Decode and cut one record."""
        slot = slots["image"][:, :, 0] if slots else None
        plain = self.crop_scale is None and self.augment is None
        pixels = decode_image(record["image"], slot if plain else None)
        (h, w), size = pixels.shape, self.image_size
        y0, x0, y1, x1 = (int(edge) for edge in record["valid_box"])
        if self.augment is not None:
            place = self.augment.place(rng, size)
            image = self.augment.expose(rng, warp(pixels, place, size))
            film = np.zeros((h, w), np.uint8)
            film[y0:y1, x0:x1] = 255
            valid = cv2.resize(
                warp(film, place, size), self.grid[::-1], interpolation=cv2.INTER_AREA
            )
        else:
            crop, box = WHOLE, Box(y0 / h, x0 / w, y1 / h, x1 / w)
            if self.crop_scale is not None:
                crop = transforms.random_crop(rng, box, scale=self.crop_scale)
                crop = crop.in_whole_pixels(h, w)
            image = transforms.resize_film(pixels, crop, size, slot)
            valid = transforms.coverage(box.seen_through(crop), self.grid) * 255
        places = [place_of(name) for name in self.findings]
        return {
            "image": image[:, :, None],
            "valid": valid.reshape(-1) >= 127.5,
            "labels": record["labels"][places].astype(np.float32),
        }


def view_id(view: str) -> int:
    """Tell frontal, lateral and other views apart; one that is not known counts as frontal."""
    if is_frontal(view):
        return FRONTAL
    return LATERAL if _LATERAL.search(view.replace("_", " ")) else OTHER


@dataclasses.dataclass(frozen=True)
class ReportView:
    """A study: an example of `data/studies.py`, or one record, which is a study of its own.

    `image` uint8 [views s s 1] and `valid` bool [views n], zero where `has_image` bool [views] says
    that there is no film; `view_ids` int32 [views]; `prefix` int32 [p] and `text` int32 [t], padded
    with 0; `has_text` bool: whether there is a report. `text` closes with the end token, unless it
    was cut: then `cut` int32 counts the tokens that are missing, and nothing says that a report
    ends there.
    """

    image_size: int
    grid: tuple[int, int]
    crop_scale: tuple[float, float] | None
    augment: Augment | None
    views: int
    """Films of a study, at most; 0 reads none."""
    report: ReportText

    def __post_init__(self) -> None:
        if self.augment is not None and self.augment.mirror:
            raise ValueError("data.augment.mirror: a mirrored film has other sides than its report")
        if self.views < 0:
            raise ValueError(f"views must not be negative, got {self.views}")
        if self.report.tokenizer is not None:
            tokenizer_of(self.report.tokenizer)

    def __call__(
        self,
        record: dict[str, Any],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Decode and cut the films, and tokenise the report."""
        films = record["films"] if "films" in record else [record] if record["image"] else []
        shown = self._films(films[: self.views], rng, slots)
        return {**shown, **self.report.tokens(record["report"])}

    def _films(
        self,
        films: Sequence[dict[str, Any]],
        rng: np.random.Generator,
        slots: dict[str, np.ndarray] | None,
    ) -> dict[str, np.ndarray]:
        size, n = self.image_size, self.grid[0] * self.grid[1]
        shape = (self.views, size, size, 1)
        image = slots["image"] if slots else np.empty(shape, np.uint8)
        image[len(films) :] = 0
        valid = np.zeros((self.views, n), bool)
        ids = np.full(self.views, OTHER, np.int32)
        one = LabelledView(size, self.grid, (), self.crop_scale, self.augment)
        for place, film in enumerate(films):
            made = one(film, rng, {"image": image[place]})
            if not np.may_share_memory(made["image"], image):
                image[place] = made["image"]
            valid[place], ids[place] = made["valid"], view_id(film["view"])
        has_image = np.arange(self.views) < len(films)
        return {"image": image, "valid": valid, "view_ids": ids, "has_image": has_image}


VIEWS = {
    "film": FilmView,
    "labelled": LabelledView,
    "report": ReportView,
    "segment": SegmentView,
}
