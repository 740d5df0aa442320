"""PNG, JPEG and TIFF files to grey values, the right way up.

docs/films.md has a table of what each kind, mode and depth becomes.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Shaped, UInt, UInt8
from PIL import Image

from xmae_jax.data import png, tiff
from xmae_jax.data.codestream import jpeg_stream
from xmae_jax.data.limits import MAX_PIXELS, FilmError, check_pixels, check_size
from xmae_jax.data.tone import stretched_picture, widened

_LABELS = 8  # different values in a mask that are no grey edges
_ERRORS = (OSError, SyntaxError, EOFError, struct.error, zlib.error, ValueError)


def read_picture(
    path: Path, kind: str, *, frames: str = "refuse", dtype: Any = np.uint8
) -> tuple[UInt[np.ndarray, "h w"], int]:
    """Read a film's grey values and its bits a sample; see `read_film` for `frames`."""
    data = path.read_bytes()
    if kind == "JPEG":
        pixels, bits = read_jpeg(data)
        return widened(pixels, dtype), bits
    picture, bits = _opened(data, kind, frames=frames)
    check_size(picture.height, picture.width)
    _load(picture, data, kind)
    exif = picture.info.get("exif", b"")[6:] if kind == "PNG" else b""
    if kind == "PNG" and bits == 16 and picture.mode[0] != "I":
        pixels = _deep_colour(data, dtype)
    elif picture.mode[0] in "IF":
        pixels = stretched_picture(np.asarray(picture), dtype)
        if kind == "TIFF" and getattr(picture, "tag_v2", {}).get(tiff.PHOTOMETRIC) == 0:
            pixels = np.iinfo(dtype).max - pixels  # white is zero
    else:
        pixels = widened(_grey(picture), dtype)
    return _turned(pixels, tiff.orientation(exif)), bits


def read_jpeg(data: bytes) -> tuple[UInt8[np.ndarray, "h w"], int]:
    """Decode a JPEG to grey; refuse one that the decoder had to mend."""
    stream = jpeg_stream(data)
    check_size(stream.rows, stream.columns)
    if stream.precision != 8:
        raise FilmError("JPEG of other than 8 bits")
    if stream.components == 4:
        picture, _ = _opened(data, "JPEG", frames="first")
        _load(picture, data, "JPEG")
        pixels = _grey(picture)
    else:
        try:
            pixels = simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
        except ValueError as error:
            cut = any(word in str(error) for word in ("Premature end", "truncated"))
            raise FilmError(f"JPEG file is {'truncated' if cut else 'damaged'}") from None
    return _turned(pixels, tiff.orientation(stream.exif)), 8


def read_mask(path: Path, kind: str) -> Bool[np.ndarray, "h w"]:
    """Read a picture as a mask: any colour counts, alpha does not."""
    data = path.read_bytes()
    picture, _ = _opened(data, kind, frames="refuse")
    _load(picture, data, kind)
    if picture.mode in ("P", "PA", "CMYK"):
        picture = picture.convert("RGB")
    values = np.asarray(picture)
    if values.ndim == 3:
        values = values[..., : values.shape[-1] - (picture.mode in ("LA", "RGBA"))].max(-1)
    exif = picture.info.get("exif", b"")[6:] if kind != "TIFF" else b""  # TIFFs are upright
    values = _turned(values, tiff.orientation(exif))
    if values.dtype == bool:
        return values
    # A few values are labels (1 and 2, or 127 and 255, for the two lungs); grey edges are cut at
    # half.
    return values > 0 if len(np.unique(values)) <= _LABELS else values >= values.max() / 2


def _opened(data: bytes, kind: str, *, frames: str) -> tuple[Any, int]:
    """Read a picture's header: return the picture, not yet decoded, and its bits a sample."""
    bits, several = 8, False
    if kind == "TIFF":
        directory = tiff.read_directory(data)
        values = directory.values
        check_pixels(values.get(tiff.TILE_HEIGHT, 1), values.get(tiff.TILE_WIDTH, 1))
        check_pixels(values.get(tiff.HEIGHT, 1), values.get(tiff.WIDTH, 1))
        bits, several = values.get(tiff.BITS, 1), not directory.last
    try:
        picture = Image.open(io.BytesIO(data), formats=(kind,))
        check_pixels(picture.height, picture.width)
        if kind == "PNG":
            bits = png.depth(data)
            several = getattr(picture, "n_frames", 1) > 1
            # Decoding skips the checksums of the picture data.
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    except Image.UnidentifiedImageError:
        raise FilmError(f"{kind} file is damaged or of a kind that is not read") from None
    except Image.DecompressionBombError:
        raise FilmError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except _ERRORS as error:
        raise FilmError(f"{kind} file {_damage(error)}") from None
    if several and frames != "first":
        raise FilmError("more than one frame")
    return picture, bits


def _load(picture: Any, data: bytes, kind: str) -> None:
    try:
        picture.load()  # turns a TIFF upright too
        if kind == "PNG" and not (_last_row_drawn(picture, data) or png.is_complete(data)):
            raise FilmError("PNG file is truncated")
    except _ERRORS as error:
        raise FilmError(f"{kind} file {_damage(error)}") from None


def _last_row_drawn(picture: Any, data: bytes) -> bool:
    """Tell whether decoding reached the last row for certain; a black one is no proof."""
    row = picture.crop((0, picture.height - 1, picture.width, picture.height))
    return not png.interlaced(data) and bool(np.asarray(row).any())


def _damage(error: Exception) -> str:
    text = str(error).lower()
    if "too large" in text or "too much memory" in text:
        return "has a text or profile that is too large"
    return "is truncated" if "truncated" in text else "is damaged"


def _grey(picture: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Convert 8-bit modes to grey; alpha is dropped, since arrows and crops are drawn with it."""
    if picture.mode in ("P", "PA", "CMYK", "LAB", "HSV"):
        picture = picture.convert("RGB")  # the palette's colours, not its indices
    elif picture.mode in ("LA", "La"):
        picture = picture.getchannel("L")
    return np.asarray(picture.convert("L"))


def _deep_colour(data: bytes, dtype: Any) -> UInt[np.ndarray, "h w"]:
    """Read a PNG of 16-bit colours, of which Pillow keeps the upper 8 bits only."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if values is None:
        raise FilmError("PNG file is damaged")
    return stretched_picture(values, dtype)


def _turned(values: Shaped[np.ndarray, "h w"], turn: int) -> Shaped[np.ndarray, "..."]:
    """Undo an EXIF orientation: 1 upright, 3 upside down, 6 and 8 lying, even ones mirrored."""
    if turn in (5, 6, 7, 8):
        values = values.T
    if turn in (2, 3, 6, 7):
        values = values[:, ::-1]
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
