"""Sentences over the films of a study: where each was read, and that all of them can be read."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from xmae_jax.tasks import overlay, report_overlay
from xmae_jax.tasks.report_overlay import COLOURS, Panel, Sentence


def panel(shape=(640, 512), number=1) -> Panel:
    height, width = shape
    side = max(shape)
    top, left = (side - height) // 2, (side - width) // 2
    placed = overlay.Placed(shape, (top, left, top + height, left + width), side)
    return Panel(np.full(shape, 60, np.uint8), placed, f"film {number}", ())


def spot(row, column, *, peak=8.0):
    read = np.full((8, 8), 0.5, np.float32)
    read[row, column] = peak
    return read


def drawn(films, sentences):
    data = report_overlay.draw(films, sentences, title="Study 1")
    return np.asarray(Image.open(io.BytesIO(data)))


def inked(page, number):
    """Find the pixels of a sentence's colour."""
    return np.argwhere((page == COLOURS[number]).all(axis=2))


def test_a_sentence_is_outlined_where_it_was_read():
    sentences = [
        Sentence("Left.", 0.5, (spot(1, 2), spot(1, 2, peak=0.5))),
        Sentence("Right.", 0.5, (spot(6, 5, peak=0.5), spot(6, 5))),
    ]
    page = drawn([panel(), panel(number=2)], sentences)
    plain = drawn([panel(), panel(number=2)], [one._replace(maps=(spot(0, 0, peak=1.9),) * 2)
                                               for one in sentences])  # fmt: skip
    top = int(np.flatnonzero((page[:, 20] == 60).all(axis=1))[0])
    for number, (y, x) in ((0, (1.5, 2.5)), (1, (6.5, 5.5))):
        left = 12 + number * (512 + 12) - 64  # of the square in which the film lies
        middle = np.array([top + y * 80, left + x * 80])
        on_films = inked(page, number)
        on_films = on_films[on_films[:, 1] < 2 * 512 + 24]
        assert len(on_films) > 100 and (abs(on_films - middle) < 80).all()
    assert not (inked(plain, 0)[:, 1] < 2 * 512 + 24).any()  # nearly even: no outline


def test_a_long_report_and_films_of_any_size_can_be_read(monkeypatch):
    sentences = [Sentence(f"{'word ' * 40}{n}.", 0.5, (spot(3, 3),)) for n in range(24)]
    page = drawn([panel((200, 300))], sentences)
    # Numbers of one place stand beside each other, and none over another.
    film = page[:, : 512 + 24]
    badges = [(film == COLOURS[c]).all(axis=2).sum() for c in range(len(COLOURS))]
    assert min(badges) > 3 * 300
    assert page.shape[0] > 24 * 112 and page.shape[1] < 1300
    narrow = drawn([panel((3000, 100))], sentences[:1])
    assert 1024 < narrow.shape[0] < 1600
    assert drawn([panel((64, 64))], []).shape[1] > 512


def test_lines_break_at_blanks_and_anywhere_else_if_need_be():
    font = ImageFont.load_default(20)
    for text in ("No pneumothorax and no effusion.", "x" * 90, "a " + "y" * 60 + " b", ""):
        lines = list(report_overlay.lines_of(text, font, room=200))
        assert all(font.getlength(line) <= 200 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert list(report_overlay.lines_of("one two three", font, room=90)) == ["one two", "three"]


@pytest.mark.parametrize("there", [True, False])
def test_chinese_needs_a_font_that_has_it(monkeypatch, there):
    plain = ImageFont.load_default(20)

    real = ImageFont.truetype

    def find(font, size, **more):
        if font not in report_overlay.CHINESE:
            return real(font, size, **more)
        if not there:
            raise OSError(font)
        return plain

    monkeypatch.setattr(ImageFont, "truetype", find)
    _, text = report_overlay.font_for("心脏不大。", 20)
    assert text == ("心脏不大。" if there else report_overlay.NO_FONT)
