"""What a film's own pixels say against it, whatever its header claims."""

import cv2
import numpy as np
from jaxtyping import UInt8

from xmae_jax.data.text_marks import resized, shrunk, text_lines

FLAGS = {
    "aspect": "more than twice as long as wide, or the other way round",
    "bits": "fewer than 8 bits, or fewer than 64 grey levels in use",
    "burnt_in_text": "a line of text in the picture, or a header that says so",
    "inverted": "lungs brighter than the spine and air brighter than the body",
    "low_contrast": "98 % of the picture within 32 of 256 grey levels",
}


def flags_of(pixels: UInt8[np.ndarray, "h w"], bits: int) -> list[str]:
    """Return those of FLAGS that a film of `bits` stored bits earns."""
    some = np.ascontiguousarray(pixels[::2, ::2])
    counts = cv2.calcHist([some], [0], None, [256], [0, 256]).ravel()
    copy = resized(pixels)  # one shrunk copy for both searches
    low, high = np.searchsorted(np.cumsum(counts) / some.size, (0.01, 0.99))
    found = {
        "aspect": max(pixels.shape) > 2 * min(pixels.shape),
        "bits": bits < 8 or np.count_nonzero(counts) < 64,
        "burnt_in_text": bool(text_lines(copy)),
        "inverted": is_inverted(copy),
        "low_contrast": high - low < 32,
    }
    return [flag for flag, on in found.items() if on]


def is_inverted(pixels: UInt8[np.ndarray, "h w"]) -> bool:
    """Tell whether a frontal chest film shows air white.

    Compares ranks of grey, which no exposure or window changes: of the spine with both lungs, and
    of the upper corners with the whole. docs/films.md has the rates on real films.
    """
    small = shrunk(pixels, min(pixels.shape) // 128)
    small = cv2.resize(small, (64, 64), interpolation=cv2.INTER_AREA).astype(np.uint8)
    counts = np.bincount(small.ravel(), minlength=256)
    ranks = ((np.cumsum(counts) - counts / 2) / small.size)[small]
    spine = ranks[20:44, 29:35].mean()
    lungs = (ranks[18:40, 14:24].mean() + ranks[18:40, 40:50].mean()) / 2
    corners = (ranks[:6, :6].mean() + ranks[:6, -6:].mean()) / 2
    return bool(spine - lungs < -0.1 and corners > 0.4)
