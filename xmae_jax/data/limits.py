"""What a file may ask for before it is decoded, and the error that says why it was refused."""

MAX_BYTES = 1 << 28  # of a file; a raw film of MAX_PIXELS in 16 bits takes half of it
MAX_PIXELS = 64_000_000  # a 35 x 43 cm film at 50 um has 61; 4 bytes each in a decoder is 256 MB
MIN_SIDE = 64  # px: four 16 px patches; nothing smaller shows a chest


class FilmError(Exception):
    """A file that holds no usable film; `reason` is short and names no patient."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_size(height: int, width: int) -> None:
    """Raise FilmError for a film too large to decode or too small to use."""
    check_pixels(height, width)
    if min(height, width) < MIN_SIDE:
        raise FilmError(f"a side shorter than {MIN_SIDE} pixels")


def check_pixels(height: int, width: int) -> None:
    """Raise FilmError for a picture too large to decode."""
    if height * width > MAX_PIXELS:
        raise FilmError(f"more than {MAX_PIXELS // 1_000_000} megapixels")
