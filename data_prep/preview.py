"""Draw films with the outlines of their lungs on contact sheets, the worst masks first.

    python -m data_prep.preview --data DIR

writes PNG pages of 48 films into DIR_preview, beside the data set: each film with its id, its view,
where its mask is from, and the mask's quality. Films without a mask come last. A film flagged for
text in the picture, which may name a patient, is shown too coarsely to read it.

Exit codes: 0 done, 64 usage, 65 bad data, 74 disk or I/O.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_prep.arguments import BAD_DATA, DISK, INTERRUPTED, USAGE, Parser, UsageError
from data_prep.pictures import Shards, caption, drawn, has_writing, outlined, read_places, worst
from xmae_jax.data.index import Entry, read_entries
from xmae_jax.data.manifest import DataError, check, load_manifest
from xmae_jax.data.records import SPLITS

_COLUMNS, _LINES = 8, 6
_SIDE, _GAP, _HEAD, _TEXT = 224, 8, 34, 34  # px: film, between films, title, caption


def preview(
    directory: Path, output: Path, *, split: str | None, films: int, sort: str
) -> tuple[int, int]:
    """Write contact sheets; return how many pages and films they hold.

    Raises UsageError or DataError.
    """
    manifest = load_manifest(directory)
    check(directory, manifest)
    entries = read_entries(directory)
    shards = [(directory / entry["file"], entry["records"]) for entry in manifest["files"]]
    places = [place for place, entry in enumerate(entries) if split in (None, entry.split)]
    if not places:
        there = ", ".join(manifest["counts"]["splits"])
        raise UsageError(f"--split {split}: no film; there are: {there}")
    chosen = drawn(entries, places, number=films)
    if sort == "quality":
        bare = [place for place in places if entries[place].mask_source == "none"]
        chosen = worst(entries, places, number=films)
        chosen += drawn(entries, bare, number=films - len(chosen))
    order = "the worst contours first" if sort == "quality" else "at random"
    of = f"{len(chosen):,} of {len(places):,} films" + (f" of {split}" if split else "")
    _clear(output)
    step = _COLUMNS * _LINES
    pages = -(-len(chosen) // step)
    for page in range(pages):
        title = f"{manifest['name']}: {of}, {order}; page {page + 1} of {pages}"
        sheet = _sheet(entries, shards, chosen[page * step : (page + 1) * step], title=title)
        partial = output / "page.partial"
        sheet.save(partial, "PNG")
        os.replace(partial, output / f"page-{page + 1:04d}.png")
    return pages, len(chosen)


def _clear(output: Path) -> None:
    """Make the folder, or take the pages of an earlier call out of it."""
    output.mkdir(exist_ok=True)
    there = sorted(output.iterdir())
    if any(not path.match("page-*.png") and path.name != "page.partial" for path in there):
        raise UsageError(f"--output {output}: holds other files than pages")
    for path in there:
        path.unlink()


def _sheet(
    entries: Sequence[Entry], shards: Shards, places: Sequence[int], *, title: str
) -> Image.Image:
    films = {
        place: outlined(record, side=_SIDE, coarse=has_writing(entries[place]))
        for place, record in read_places(shards, places)
    }
    lines = -(-len(places) // _COLUMNS)
    width = _GAP + _COLUMNS * (_SIDE + _GAP)
    page = Image.new("RGB", (width, _HEAD + lines * (_SIDE + _TEXT + _GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    draw.text((_GAP, 8), title, "black", ImageFont.load_default(16))
    for number, place in enumerate(places):
        line, column = divmod(number, _COLUMNS)
        x, y = _GAP + column * (_SIDE + _GAP), _HEAD + line * (_SIDE + _TEXT + _GAP)
        page.paste(films[place], (x, y))
        view, mask = caption(entries[place])
        draw.text((x, y + _SIDE + 1), f"{entries[place].id}  {view}", "black", font)
        if has_writing(entries[place]):
            mask += " · text"
        draw.text((x, y + _SIDE + 16), mask, "black", font)
    return page


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m data_prep.preview", description="contact sheets of films and lung contours"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: DIR_preview")
    parser.add_argument("--split", choices=SPLITS, help="default: all")
    parser.add_argument("--films", type=int, default=240, metavar="N", help="at most")
    parser.add_argument("--sort", choices=("quality", "random"), default="quality")
    options = parser.parse_args(arguments)
    data = options.data.resolve()
    options.output = options.output or data.with_name(data.name + "_preview")
    if not data.is_dir():
        raise UsageError(f"--data {options.data}: no such folder")
    if options.films < 1:
        raise UsageError(f"--films {options.films}: at least 1")
    if options.output.resolve().is_relative_to(data):
        raise UsageError(f"--output {options.output}: must not lie in the data set")
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output {options.output}: not a folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        options = _parse(arguments)
        pages, films = preview(
            options.data,
            options.output,
            split=options.split,
            films=options.films,
            sort=options.sort,
        )
    except UsageError as error:
        print(f"data_prep.preview: {error}", file=sys.stderr)
        return USAGE
    except DataError as error:
        print(f"data_prep.preview: {error}", file=sys.stderr)
        return BAD_DATA
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        print(f"data_prep.preview: {type(error).__name__}: {error}", file=sys.stderr)
        return DISK
    print(f"{options.output}: {films:,} films on {pages:,} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
