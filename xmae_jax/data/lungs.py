"""Where the lungs are: a contour without a model, its convex hull, and how far to trust it.

The heuristic thresholds the film inside the body and keeps the best pair of dark regions. The
rectangle is the one of the paper's released code: rows 6..15 and columns 3..15 of a 20 x 20 grid.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage
from skimage import exposure, filters, measure, morphology

SIDE = 256  # px, long side at which the heuristic works


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
    return morphology.convex_hull_image(mask, offset_coordinates=False)


def heuristic_lungs(pixels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Outline both lungs of a frontal film; all false where no believable pair is found.

    Of a ladder of thresholds, each gives the dark components that do not run out of the body; the
    pair that looks most like two lungs wins, and is then smoothed and filled.
    """
    height, width = pixels.shape
    scale = SIDE / max(height, width)
    shape = max(8, round(height * scale)), max(8, round(width * scale))
    small = np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX))
    grey = filters.gaussian(exposure.equalize_adapthist(small, kernel_size=SIDE // 2), 1.5)
    best, best_score = np.zeros(shape, bool), 0.0
    for level in np.quantile(grey, np.linspace(0.2, 0.6, 9)):
        pair = _pair(grey < level)
        score = mask_quality(pair)
        if score > best_score:
            best, best_score = pair, score
    best = _smooth(best)
    return np.asarray(Image.fromarray(best).resize((width, height), Image.Resampling.NEAREST))


def _pair(dark: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Keep the largest dark component on each side that does not leak out of the film."""
    height, width = dark.shape
    opened = ndimage.binary_opening(dark, morphology.disk(2))
    padded = np.pad(opened, 1, constant_values=True)  # everything dark at the edge is one piece
    labels, _ = ndimage.label(padded)
    labels = np.where(labels == labels[0, 0], 0, labels)[1:-1, 1:-1]
    kept = np.zeros_like(dark)
    regions = measure.regionprops(labels)
    for left in (True, False):
        side = [
            r for r in regions if (r.centroid[1] < width / 2) == left and r.area > 0.01 * dark.size
        ]
        if side:
            kept |= labels == max(side, key=lambda r: r.area).label
    return kept


def _smooth(mask):
    if not mask.any():
        return mask
    padded = np.pad(mask, 16)
    closed = ndimage.binary_fill_holes(morphology.closing(padded, morphology.disk(7)))
    return morphology.opening(closed, morphology.disk(3))[16:-16, 16:-16]


def mask_quality(mask: Bool[np.ndarray, "h w"]) -> float:
    """Rate a lung mask from 0 to 1: area, two components, symmetry, contact with the border."""
    if not mask.any() or mask.all():
        return 0.0
    height, width = mask.shape
    labels, _ = ndimage.label(mask)
    areas = np.sort(np.bincount(labels.ravel())[1:])[::-1] / mask.size
    share = areas.sum()
    size = float(np.clip(share / 0.12, 0, 1) * np.clip((0.6 - share) / 0.2, 0, 1))
    second = areas[1] if len(areas) > 1 else 0.0
    pair = float(np.clip(2 * second / areas[0], 0, 1))
    rest = float(np.clip(1 - areas[2:].sum() / share * 4, 0, 1))
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    return size * (0.3 + 0.7 * pair) * rest * float(np.clip(1 - 4 * edge, 0, 1))
