"""A study's films with the sentences of its report laid over them, each in a colour of its own.

A sentence is outlined where the decoder read while it wrote it, and listed beside with the same
films small, under all that it read. The page is dark, as films are read, so that one colour serves
for both.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from xmae_jax.tasks import overlay

# Told apart by people who see colours otherwise too, less the black and the darkest blue of
# Okabe and Ito (https://jfly.uni-koeln.de/color): both would be lost on a film.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
NOTE = (
    "Outlined: where the decoder's attention was at least half of its peak while the sentence was"
    " written. Attention shows where the decoder read. It is no proof that something is there, and"
    " not why the sentence was written."
)
_EVEN = overlay.Scale("", base=1.0, least=1.5)
_SIDES = 512, 1024  # px that the longer side of a film has, at least and at most
_LIST, _SMALL = 640, 112  # px: width of the list, longer side of the films in it
_SIZE, _GAP = 20, 12
_PAGE, _INK, _FAINT, _WARNING = (16, 16, 16), (235, 235, 235), (150, 150, 150), (255, 190, 90)
# Names by which systems have a font with Chinese characters; Pillow's own has none.
_CHINESE = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "simhei.ttf", "PingFang.ttc")


class Panel(NamedTuple):
    """A film, where it lies in the square that the model saw, and what is to be said of it."""

    pixels: UInt8[np.ndarray, "h w"]
    placed: overlay.Placed
    title: str
    warnings: tuple[str, ...]


class Sentence(NamedTuple):
    """A sentence and how it was written."""

    text: str
    probability: float
    """Of its tokens, the geometric mean."""
    maps: tuple[Float[np.ndarray, "gh gw"], ...]
    """What was read of each film; 1 is even over all of them."""

    @property
    def peak(self) -> float:
        """Return the most that was read of a patch."""
        return max(float(one.max()) for one in self.maps)


def draw(films: Sequence[Panel], sentences: Sequence[Sentence], *, title: str) -> bytes:
    """Return a PNG of a study's films and sentences."""
    shown = [_scaled(film, *_SIDES) for film in films]
    marked = [np.repeat(film.pixels[:, :, None], 3, axis=2) for film in shown]
    places: list[list[tuple[int, int]]] = [[] for _ in films]
    for number, sentence in enumerate(sentences):
        _outline(marked, shown, sentence, number=number, places=places)
    height = max(2 * _SIZE, *(len(film) for film in marked))
    width = sum(film.shape[1] for film in marked) + _GAP * (len(marked) - 1)
    page = _Page(width=width + _LIST + 3 * _GAP)
    below = page.text((_GAP, _GAP), title, room=page.width - 2 * _GAP) + _GAP
    left, top = _GAP, below
    for film, pixels in zip(shown, marked, strict=True):
        room = pixels.shape[1]
        under = page.text((left, below), film.title, room=room)
        for line in film.warnings:
            under = page.text((left, under), line, room=room, colour=_WARNING)
        top = max(top, under + _GAP // 2)
        left += room + _GAP
    left = _GAP
    for pixels in marked:
        page.paste((left, top), pixels)
        left += pixels.shape[1] + _GAP
    page.text((_GAP, top + height + _GAP), NOTE, room=width, colour=_FAINT)
    small = [_scaled(film, _SMALL, _SMALL) for film in films]
    for number, sentence in enumerate(sentences):
        below = _listed(page, (left, below), small, sentence, number=number)
    if not sentences:
        page.text((left, below), "The model wrote nothing.", room=_LIST)
    return page.png()


def _scaled(film: Panel, least: int, most: int) -> Panel:
    """Resize a film, so that its longer side is in a range."""
    longer = max(film.pixels.shape)
    scale = np.clip(longer, least, most) / longer
    height, width = (max(1, round(scale * side)) for side in film.pixels.shape)
    pixels = Image.fromarray(film.pixels).resize((width, height), Image.Resampling.LANCZOS)
    placed = dataclasses.replace(film.placed, shape=(height, width))
    return film._replace(pixels=np.asarray(pixels), placed=placed)


def _outline(
    marked: Sequence[UInt8[np.ndarray, "h w 3"]],
    films: Sequence[Panel],
    sentence: Sentence,
    *,
    number: int,
    places: Sequence[list[tuple[int, int]]],
) -> None:
    """Draw a sentence's outline on each film where it read much, and its number at the peak."""
    if sentence.peak < _EVEN.least:
        return
    colour = COLOURS[number % len(COLOURS)]
    for pixels, film, read, taken in zip(marked, films, sentence.maps, places, strict=True):
        heat = overlay.over_film(read, film.placed)
        inside = (heat >= sentence.peak / 2).astype(np.uint8)
        lines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for ink, wide in (((0, 0, 0), 5), (colour, 2)):
            cv2.drawContours(pixels, lines, -1, ink, wide, cv2.LINE_AA)
        if lines:
            y, x = np.unravel_index(int(heat.argmax()), heat.shape)
            _badge(pixels, (int(x), int(y)), taken, number=number)


def _badge(
    pixels: UInt8[np.ndarray, "h w 3"],
    at: tuple[int, int],
    taken: list[tuple[int, int]],
    *,
    number: int,
) -> None:
    """Write a sentence's number beside a place; where another stands, further to the right."""
    image = Image.fromarray(pixels)
    size = _SIZE + 6
    x, y = at[0] - size // 2, min(max(at[1] - size // 2, 0), max(image.height - size, 0))
    while any(abs(x - a) < size and abs(y - b) < size for a, b in taken):
        x += size
    x = min(max(x, 0), max(image.width - size, 0))
    taken.append((x, y))
    _number(ImageDraw.Draw(image), (x, y), number)
    pixels[:] = np.asarray(image)


def _number(pen: ImageDraw.ImageDraw, at: tuple[int, int], number: int) -> None:
    x, y = at
    box = (x, y, x + _SIZE + 5, y + _SIZE + 5)
    pen.rectangle(box, COLOURS[number % len(COLOURS)], "black")
    middle = (x + _SIZE // 2 + 3, y + _SIZE // 2 + 3)
    pen.text(middle, str(number + 1), "black", ImageFont.load_default(_SIZE - 4), anchor="mm")


def _listed(
    page: _Page, at: tuple[int, int], films: Sequence[Panel], sentence: Sentence, *, number: int
) -> int:
    """Write a sentence into the list, with its films; return where the next one goes."""
    colour, (left, top) = COLOURS[number % len(COLOURS)], at
    most = max(overlay.top_of(np.concatenate([m.ravel() for m in sentence.maps])[None], _EVEN), 1.5)
    x, under = left, top
    for film, read in zip(films, sentence.maps, strict=True):
        share = np.clip((overlay.over_film(read, film.placed) - 1) / (most - 1), 0, 1)[:, :, None]
        mixed = (1 - 0.8 * share) * film.pixels[:, :, None] + 0.8 * share * np.array(colour)
        page.paste((x, top), np.rint(mixed).astype(np.uint8))
        x, under = x + mixed.shape[1] + _GAP // 2, max(under, top + len(mixed))
    page.number((x + _GAP // 2, top), number)
    x += _GAP + _SIZE + 10
    room = left + _LIST - x
    y = page.text((x, top), sentence.text, room=room, colour=colour)
    told = f"probability of a token {sentence.probability:.2f}; "
    most = f"attention up to {sentence.peak:.1f} times even"
    told += most if sentence.peak >= _EVEN.least else "attention nearly even: not outlined"
    y = page.text((x, y), told, room=room, colour=_FAINT, size=_SIZE - 4)
    return max(y, under) + _GAP


class _Page:
    """A page that grows downwards."""

    def __init__(self, *, width: int):
        self.width, self._height = width, 0
        self._image = Image.new("RGB", (width, 256), _PAGE)

    def _grow(self, bottom: int) -> None:
        self._height = max(self._height, bottom + _GAP)
        if self._height > self._image.height:
            taller = Image.new("RGB", (self.width, 2 * self._height), _PAGE)
            taller.paste(self._image)
            self._image = taller

    def paste(self, at: tuple[int, int], pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Put a picture on."""
        self._grow(at[1] + len(pixels))
        self._image.paste(Image.fromarray(pixels), at)

    def number(self, at: tuple[int, int], number: int) -> None:
        """Put a sentence's number on."""
        self._grow(at[1] + _SIZE)
        _number(ImageDraw.Draw(self._image), at, number)

    def text(
        self,
        at: tuple[int, int],
        text: str,
        *,
        room: int,
        colour: tuple[int, int, int] = _INK,
        size: int = _SIZE,
    ) -> int:
        """Write a text in lines of at most `room` px; return where the next one goes."""
        font, text = _font(text, size)
        (x, y), step = at, size + size // 3
        for line in _lines(text, font, room):
            self._grow(y + step)
            ImageDraw.Draw(self._image).text((x, y), line, colour, font)
            y += step
        return y

    def png(self) -> bytes:
        """Return the page, as far as there is something on it."""
        data = io.BytesIO()
        self._image.crop((0, 0, self.width, self._height)).save(data, "PNG", compress_level=3)
        return data.getvalue()


def _font(text: str, size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """Choose a font that has the characters of a text; where there is none, say so instead."""
    plain = ImageFont.load_default(size)
    if all(ord(c) < 0x2E80 for c in text):
        return plain, text
    for name in _CHINESE:
        try:
            return ImageFont.truetype(name, size), text
        except OSError:
            continue
    return plain, "(no font here has its characters: see the text)"


def _lines(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int
) -> Iterator[str]:
    """Break a text at blanks, at Chinese characters, and anywhere in a word that is too long."""
    line, pending = "", ""
    for c in text:
        pending += c
        if font.getlength((line + pending).rstrip()) > room:
            whole = line if line.strip() else pending[:-1]
            pending = (pending if line.strip() else pending[-1]).lstrip()
            yield whole.rstrip()
            line = ""
        if c.isspace() or ord(c) >= 0x2E80:
            line, pending = line + pending, ""
    yield (line + pending).rstrip()
