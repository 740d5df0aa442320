"""Where the lungs are: contours with and without a model, their hull, and how far to trust them.

The heuristic lays the mean outline of two lungs over the film at every place, width and aspect
ratio, keeps the one whose inside is darkest against a thin rim around it, and lets the grey
values move that outline by a few percent. Shape comes first since an opaque lung is not dark. The
rectangle is the one of the released code of the paper that this project follows.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, UInt8
from PIL import Image
from scipy import fft, ndimage
from skimage import draw, exposure, filters, morphology

from xmae_jax.scores.groups import is_frontal as is_frontal

# Mean outlines of the manual masks of the Montgomery County films (NLM, public use), as (x, y) in
# the box around both lungs; image left is the patient's right lung.
_OUTLINES = (
    "1,97 0,83 5,45 11,20 15,12 24,4 32,1 38,2 43,8 44,20 41,43 37,57 37,76 33,80 21,81 14,84",
    "99,97 91,89 77,81 74,70 62,47 59,37 58,28 55,18 54,13 56,5 61,0 70,1 76,4 84,11 88,18 92,31"
    " 98,76",
)
OUTLINES = tuple(
    np.array([[float(part) / 100 for part in point.split(",")] for point in outline.split()])
    for outline in _OUTLINES
)

CHANNELS = ("lungs", "lungs_with_heart")
"""Two conventions of a contour: without the lung behind the heart, or with most of it."""
CONVENTIONS = {
    "chexmask": "lungs",
    "montgomery-manual": "lungs",
    "shenzhen-manual-stirenko": "lungs",
    "v7-darwin-human": "lungs_with_heart",
    "phantom-v1": "lungs",
    "phantom-v2": "lungs",
}
"""Which one a mask follows, by the name in "given:NAME" or by the film's source."""
OUTER = 0.15  # of the width of both lungs: the part along the chest wall that no heart reaches

MODEL = Path(__file__).parents[1] / "weights" / "lungs.safetensors"
"""The shipped model's weights, which `tasks/lungs.py` runs; `.json` beside them has the sha256."""

SEARCH_SIDE = 64  # px, long side of the film while the outline is searched
SIDE = 128  # px, while it is refined
WIDTHS = np.linspace(0.5, 0.95, 10)  # of both lungs, as a share of the film
ASPECTS = (0.8, 0.95, 1.1, 1.3, 1.55)  # width over height of both lungs; 5 % to 95 % of 164 masks
RIM = 0.04  # of the lungs' width: narrow, so as to stay within the chest wall
# Frontal films score 0.14 and more (1st percentile), laterals and inverted films 0.13 at most.
MIN_CONTRAST = 0.13
MAX_HOLE = 0.05  # of a contour's area
SMOOTH = 2.0  # px of a model's map: half a patch of the network, whose edges show otherwise


def convention(record: dict[str, Any]) -> str | None:
    """Name the channel whose convention a record's mask follows; None if that is not known."""
    kind, _, name = record["mask_source"].partition(":")
    if kind != "given":
        return None
    return CONVENTIONS.get(name) or CONVENTIONS.get(record["source"])


def truths(
    mask: Bool[np.ndarray, "m m"], region: Bool[np.ndarray, "m m"], *, drawn: str
) -> tuple[Bool[np.ndarray, "m m 2"], Bool[np.ndarray, "m m 2"]]:
    """Return what a contour tells of each channel: (inside, unknown); `region` is its hull.

    It tells all of the channel that was drawn, and of the other what both conventions have in
    common. Lungs without the heart lie inside those with it, which stay within the hull. Lungs with
    the heart tell what lies outside both, and their outer part is lung, as no heart comes near it.
    """
    inside = np.repeat(mask[:, :, None], len(CHANNELS), axis=2)
    unknown = np.zeros_like(inside)
    if drawn == "lungs":
        unknown[:, :, 1] = region & ~mask
        return inside, unknown
    columns = np.arange(mask.shape[1])
    left = region.argmax(axis=1)[:, None]
    right = region.shape[1] - 1 - region[:, ::-1].argmax(axis=1)[:, None]
    band = OUTER * region.any(axis=0).sum()
    outer = np.minimum(columns - left, right - columns) < band
    unknown[:, :, 0] = mask & ~outer
    return inside, unknown


def rectangle(shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Make the released code's rectangle as a mask of pixels.

    On a grid of g x g patches: rows floor(.25 g) + 1 to floor(.75 g), columns floor(.125 g) + 1
    to floor(.75 g), inclusive; here for g = 20, the paper's 320 px in patches of 16.
    """
    height, width = shape
    rows = np.arange(height) * 20 // height
    columns = np.arange(width) * 20 // width
    return np.outer((rows >= 6) & (rows <= 15), (columns >= 3) & (columns <= 15))


def hull(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Fill the convex hull of both lungs together; an empty mask stays empty."""
    if not mask.any():
        return mask.copy()
    return morphology.convex_hull_image(mask)


def contour_of(
    probability: Float32[np.ndarray, "m m"], shape: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """Make a film's contour of a channel that a model gave: the two largest parts, without holes.

    Probabilities are smoothed and enlarged, and not the contour, which so stays smooth.
    """
    probability = np.asarray(cv2.GaussianBlur(probability, (0, 0), SMOOTH))
    inside = probability >= 0.5
    labels = _components(inside)
    areas = np.bincount(labels.ravel())[1:]
    kept = np.isin(labels, 1 + np.argsort(areas)[::-1][:2]) & inside
    holes = _components(np.asarray(ndimage.binary_fill_holes(kept)) & ~kept)
    sizes = np.bincount(holes.ravel())
    small = sizes < MAX_HOLE * kept.sum()  # what two lungs that touch enclose is none
    clean = np.where(inside & ~kept, np.float32(0), probability)
    clean = np.where((holes > 0) & small[holes], np.float32(1), clean)
    return cv2.resize(clean, shape[::-1], interpolation=cv2.INTER_LINEAR) >= 0.5


def certainty(probability: Float32[np.ndarray, "m m"]) -> float:
    """Rate from 0 to 1 how sure a model is of what it counts as inside.

    In full from a mean distance of 0.7 to even odds (of 1), which the least clear frontal films
    reach; masks, textures and turned films that look like lungs to the model mostly do not.
    """
    inside = probability[probability >= 0.5]
    if not inside.size:
        return 0.0
    return float(np.clip((np.mean(2 * inside - 1) - 0.5) / 0.2, 0, 1))


def dice(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Return how far two masks agree, from 0 to 1; two empty ones do not."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0


def mask_quality(mask: Bool[np.ndarray, "h w"]) -> float:
    """Rate from 0 to 1 how much a mask looks like two lungs on a frontal film.

    The product of five parts: area (12 % to 70 % of the film in full), two components of like
    size, one beside the other, little besides them, and little contact with the film's border.
    Empty and full are 0.
    """
    if not mask.any() or mask.all():
        return 0.0
    every = max(1, max(mask.shape) // SIDE)
    mask = mask[::every, ::every]
    labels = _components(mask)
    areas = np.bincount(labels.ravel())[1:] / mask.size
    if not areas.size:  # so thin that it is missed
        return 0.0
    order = np.argsort(areas)[::-1]
    share = areas.sum()
    second = areas[order[1]] if len(areas) > 1 else 0.0
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    area = min(share / 0.12, (0.9 - share) / 0.2, 1.0)
    pair = 0.3 + 0.7 * min(2 * second / areas[order[0]], 1.0)
    rest = 1 - min(4 * areas[order[2:]].sum() / share, 1.0)
    boxes = ndimage.find_objects(labels)
    beside = _beside(*(boxes[i] for i in order[:2])) if len(areas) > 1 else 1.0
    return float(max(area, 0.0) * pair * beside * rest * (1 - min(border, 1.0)))


def _beside(one: tuple[slice, slice], other: tuple[slice, slice]) -> float:
    """Rate whether two boxes share rows, as they should, and not columns; half of each will do."""

    def shared(a: slice, b: slice) -> float:
        length = min(a.stop - a.start, b.stop - b.start)
        return max(min(a.stop, b.stop) - max(a.start, b.start), 0) / length

    rows, columns = (shared(a, b) for a, b in zip(one, other, strict=True))
    return min(2 * rows, 1.0) * min(2 * (1 - columns), 1.0)


def heuristic_lungs(pixels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Outline both lungs of a frontal film; all false where nothing looks like a pair of lungs."""
    found = _search(1 - _even(_shrink(pixels, SEARCH_SIDE)))
    if found is None:
        return np.zeros(pixels.shape, bool)
    grey = ndimage.gaussian_filter(_even(_shrink(pixels, SIDE)), 1.5)
    scale = SIDE / SEARCH_SIDE
    lungs = np.zeros(grey.shape, bool)
    for outline in OUTLINES:
        lungs |= _refine(grey, outline, tuple(round(scale * part) for part in found))
    size = pixels.shape[::-1]
    return np.asarray(Image.fromarray(lungs).resize(size, Image.Resampling.NEAREST))


def _shrink(pixels: UInt8[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "y x"]:
    height, width = pixels.shape
    scale = side / max(height, width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _even(small: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Even out contrast locally, and paint the air around the body in the body's median grey."""
    if small.min() == small.max():
        return np.zeros(small.shape, np.float32)
    tile = max(8, small.shape[0] // 2)
    grey = exposure.equalize_adapthist(small, kernel_size=tile, clip_limit=0.02)
    dark = ndimage.binary_opening(small < 0.35 * filters.threshold_otsu(small), morphology.disk(1))
    labels = _components(np.pad(dark, 1, constant_values=True))
    air = (labels == labels[0, 0])[1:-1, 1:-1]
    if not air.all():
        grey[air] = np.median(grey[~air])
    return grey.astype(np.float32)


def _components(mask: Bool[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    labels, _ = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues]
    return labels


def _distance(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return np.asarray(ndimage.distance_transform_edt(mask))


def _draw(outline: Float[np.ndarray, "n 2"], shape: tuple[int, int], box: tuple) -> np.ndarray:
    """Fill an outline whose unit box lies at `box` = (y, x, height, width) of an image."""
    y, x, height, width = box
    corners = outline[:, ::-1] * (height - 1, width - 1) + (y, x)
    return draw.polygon2mask(shape, corners)


@lru_cache(maxsize=4096)
def _template(height: int, width: int, length: int) -> tuple[np.ndarray, int]:
    """Make the spectrum of a template whose response is mean inside less mean in the rim."""
    pad = max(2, round(RIM * width) + 1)
    shape = height + 2 * pad, width + 2 * pad
    box = pad, pad, height, width
    inside = _draw(OUTLINES[0], shape, box) | _draw(OUTLINES[1], shape, box)
    distance = _distance(~inside)
    rim = (distance > 0) & (distance <= max(1, round(RIM * width)))
    weights = inside / inside.sum() - rim / rim.sum()
    spectrum = np.asarray(fft.rfft2(weights.astype(np.float32), (length, length)))
    return np.conj(spectrum), pad


def _search(dark: Float32[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    """Find the box (y, x, height, width) of both lungs by correlation with the outlines."""
    rows, columns = dark.shape
    length = fft.next_fast_len(2 * max(rows, columns), real=True)
    spectrum = np.asarray(fft.rfft2(dark - dark.mean(), (length, length)))
    best, box = MIN_CONTRAST, None
    for share in WIDTHS:
        for aspect in ASPECTS:
            width = round(share * columns)
            height = round(width / aspect)
            if not 0.3 * rows <= height <= rows:
                continue
            template, pad = _template(height, width, length)
            y = np.arange(-pad, rows - height - pad + 1)  # the box stays inside the film
            x = np.arange(-pad, columns - width - pad + 1)
            response = np.asarray(fft.irfft2(spectrum * template, (length, length)))[np.ix_(y, x)]
            # Large and near the middle, all else equal: half a pair of lungs is dark as well.
            off_x = (x + pad + width / 2) / columns - 0.5
            off_y = (y + pad + height / 2) / rows - 0.45
            score = share * response - off_x**2 - 0.3 * off_y[:, None] ** 2
            at = np.unravel_index(score.argmax(), score.shape)
            if score[at] > best:
                best, box = score[at], (int(y[at[0]]) + pad, int(x[at[1]]) + pad, height, width)
    return box


def _refine(
    grey: Float32[np.ndarray, "h w"], outline: Float[np.ndarray, "n 2"], box: tuple
) -> Bool[np.ndarray, "h w"]:
    """Move one lung's outline to the grey values: distance to the outline plus a threshold.

    The threshold lies between the medians inside and just outside; two rounds settle it.
    """
    drawn = _draw(outline, grey.shape, box)
    inwards = (_distance(drawn) - _distance(~drawn)) / box[3]  # in widths of both lungs
    prior = np.clip(inwards / 0.04, -3, 3)
    lung = drawn
    for _ in range(2):
        around = (inwards > -0.1) & (inwards < 0) & ~lung
        if not lung.any() or not around.any():
            return drawn
        inside, outside = np.median(grey[lung]), np.median(grey[around])
        level, spread = 0.4 * inside + 0.6 * outside, max(0.03, abs(outside - inside) / 2)
        lung = prior + 0.5 * np.clip((level - grey) / spread, -1.5, 1.5) > 0
    lung = ndimage.binary_opening(lung, morphology.disk(2))
    if not lung.any():
        return drawn
    labels = _components(lung)
    lung = np.pad(labels == 1 + np.bincount(labels.ravel())[1:].argmax(), 5)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(lung, morphology.disk(4)))
    return np.asarray(closed)[5:-5, 5:-5]
