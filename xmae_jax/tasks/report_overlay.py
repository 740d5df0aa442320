"""A study's films with the sentences of its report laid over them, each in a colour of its own.

A sentence is outlined where the decoder read while it wrote it, and listed beside with the same
films small, under all that it read. The page is dark, as films are read, so that one colour serves
for both.
"""

from __future__ import annotations

import dataclasses
import functools
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
    "Coloured: where the decoder's attention was above even while the sentence was written."
    " Outlined: where it was at least half of its peak, if that is twice even. Attention shows"
    " where the decoder read. It is no proof that something is there, and does not say why a"
    " sentence was written."
)
NO_FONT = "(no font here has its characters: see the text)"
_EVEN = overlay.Scale("", base=1.0, least=1.5)
_OUTLINED = 2.0  # times even that a peak has at least, so that half of it is not below even
_SIDES = 512, 1024  # px that the longer side of a film has, at least and at most
_LIST, _SMALL = 640, 112  # px: width of the list, longer side of the films in it
_NARROW = 240  # px for a film at least, so that what is said of it is read
_SIZE, _GAP = 20, 12
_PAGE, _INK, _FAINT, _WARNING = (16, 16, 16), (235, 235, 235), (150, 150, 150), (255, 190, 90)
# Names by which systems have a font with Chinese characters; Pillow's own has none.
CHINESE = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "simhei.ttf", "PingFang.ttc")


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
    rooms = [max(film.pixels.shape[1], _NARROW) for film in shown]
    width = sum(rooms) + _GAP * (len(rooms) - 1)
    page = _Page(width=width + _LIST + 3 * _GAP)
    below = page.text((_GAP, _GAP), title, room=page.width - 2 * _GAP) + _GAP
    lefts = [_GAP + sum(rooms[:i]) + i * _GAP for i in range(len(rooms))]
    top = below
    for film, left, room in zip(shown, lefts, rooms, strict=True):
        under = page.text((left, below), film.title, room=room)
        for line in film.warnings:
            under = page.text((left, under), line, room=room, colour=_WARNING)
        top = max(top, under + _GAP // 2)
    under = top
    for place, (film, left) in enumerate(zip(shown, lefts, strict=True)):
        page.paste((left, top), _outlined(film, place, sentences))
        under = max(under, top + len(film.pixels))
    page.text((_GAP, under + _GAP), NOTE, room=width, colour=_FAINT)
    small = [_scaled(film, _SMALL, _SMALL) for film in films]
    left = width + 2 * _GAP
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


def _outlined(film: Panel, place: int, sentences: Sequence[Sentence]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw where each sentence read much of a film of the study, and its number at the peak."""
    pixels = np.repeat(film.pixels[:, :, None], 3, axis=2)
    peaks: dict[int, tuple[int, int]] = {}
    for number, sentence in enumerate(sentences):
        heat = overlay.over_film(sentence.maps[place], film.placed)
        level = sentence.peak / 2
        if sentence.peak < _OUTLINED or heat.max() < level:
            continue
        inside = (heat >= level).astype(np.uint8)
        lines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for ink, wide in (((0, 0, 0), 5), (_colour(number), 2)):
            cv2.drawContours(pixels, lines, -1, ink, wide, cv2.LINE_AA)
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        peaks[number] = int(x), int(y)
    image = Image.fromarray(pixels)
    _badges(image, peaks)
    return np.asarray(image)


def _badges(image: Image.Image, peaks: dict[int, tuple[int, int]]) -> None:
    """Write sentences' numbers at their peaks; where one stands already, beside or below it."""
    size, taken = _SIZE + 6, []
    pen = ImageDraw.Draw(image)
    right, bottom = max(image.width - size, 0), max(image.height - size, 0)
    for number, (x, y) in peaks.items():
        x, y = min(max(x - size // 2, 0), right), min(max(y - size // 2, 0), bottom)
        while any(abs(x - a) < size and abs(y - b) < size for a, b in taken):
            x += size
            if x > right:
                x, y = 0, y + size
        taken.append((x, y))
        _number(pen, (x, y), number)


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def _number(pen: ImageDraw.ImageDraw, at: tuple[int, int], number: int) -> None:
    x, y = at
    box = (x, y, x + _SIZE + 5, y + _SIZE + 5)
    pen.rectangle(box, _colour(number), "black")
    middle = (x + _SIZE // 2 + 3, y + _SIZE // 2 + 3)
    pen.text(middle, str(number + 1), "black", _plain(_SIZE - 4), anchor="mm")


def _listed(
    page: _Page, at: tuple[int, int], films: Sequence[Panel], sentence: Sentence, *, number: int
) -> int:
    """Write a sentence into the list, with its films; return where the next one goes."""
    colour, (left, top) = _colour(number), at
    most = overlay.top_of(np.concatenate([one.ravel() for one in sentence.maps])[None], _EVEN)
    span = max(most, _EVEN.least) - _EVEN.base
    x, under = left, top
    for film, read in zip(films, sentence.maps, strict=True):
        share = np.clip((overlay.over_film(read, film.placed) - _EVEN.base) / span, 0, 1)[
            :, :, None
        ]
        mixed = (1 - 0.8 * share) * film.pixels[:, :, None] + 0.8 * share * np.array(colour)
        page.paste((x, top), np.rint(mixed).astype(np.uint8))
        x, under = x + mixed.shape[1] + _GAP // 2, max(under, top + len(mixed))
    page.number((x + _GAP // 2, top), number)
    x += _GAP + _SIZE + 10
    room = left + _LIST - x
    y = page.text((x, top), sentence.text, room=room, colour=colour)
    told = f"token probability {sentence.probability:.2f}, attention to {sentence.peak:.1f} x even"
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
        font, text = font_for(text, size)
        (x, y), step = at, size + size // 3
        for line in lines_of(text, font, room=room):
            self._grow(y + step)
            ImageDraw.Draw(self._image).text((x, y), line, colour, font)
            y += step
        return y

    def png(self) -> bytes:
        """Return the page, as far as there is something on it."""
        data = io.BytesIO()
        self._image.crop((0, 0, self.width, self._height)).save(data, "PNG", compress_level=3)
        return data.getvalue()


@functools.lru_cache
def _plain(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load Pillow's own font once."""
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, str]:
    """Choose a font that has the characters of a text; where there is none, say so instead."""
    plain = _plain(size)
    if all(ord(c) < 0x2E80 for c in text):
        return plain, text
    for name in CHINESE:
        try:
            return ImageFont.truetype(name, size), text
        except OSError:
            continue
    return plain, NO_FONT


def lines_of(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, *, room: int
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
