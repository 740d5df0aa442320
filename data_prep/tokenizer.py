"""Train a tokenizer on reports.

    python -m data_prep.tokenizer --input SHARDS-or-reports.csv --output FILE.model --vocab N

A unigram SentencePiece model with byte fallback, so that any text in any script comes back whole;
padding, end and unknown are 0, 1 and 2, as in T5. It reads the sections of the training split
alone, each study once, in the form of `xmae_jax.data.text.normalise`: of shards by their split, of
a table as `data_prep.reports` splits it. The same input gives
the same bytes. FILE.json beside it says what it was made of and how it fits the training texts and
those of val.

A vocabulary is made of words that reports have in common: it may hold a name that de-identification
missed, so hand it on as you would the reports.

Exit codes: 0 done, 64 usage, 65 bad data, 74 disk or I/O.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import sentencepiece

from data_prep import reports
from data_prep.arguments import BAD_DATA, DISK, INTERRUPTED, USAGE, Parser, UsageError
from data_prep.inputs import sha256_of
from xmae_jax.data.manifest import MANIFEST, DataError, load_manifest
from xmae_jax.data.records import Records, Report
from xmae_jax.data.text import NORMALISATION, Marks, Tokenizer, fertility, normalise
from xmae_jax.data.tokenizer_training import LANGUAGES, train_tokenizer


def reports_of(path: Path, split: str, prefix: str = "") -> Iterator[Report]:
    """Yield the reports of a split, each study once; `data_prep.reports` splits a table."""
    if path.is_dir():
        seen: set[tuple[str, str]] = set()
        if any(entry["split"] == split for entry in load_manifest(path)["files"]):
            for record in Records(path, split):
                if (study := (record["patient"], record["study"])) not in seen:
                    seen.add(study)
                    yield record["report"]
        return
    yield from (study.report for study in reports.read(path, prefix)[0].values()
                if study.split == split)  # fmt: skip


def texts_of(path: Path, split: str, marks: Marks, *, prefix: str = "") -> list[str]:
    """Return the sections of a split's reports, normalised."""
    told = (text for one in reports_of(path, split, prefix) for text in one.values())
    return [text for text in (normalise(text, marks) for text in told) if text]


def make(options: argparse.Namespace) -> str:
    """Train, and write the model and its card; return the summary."""
    texts, held_out = (
        texts_of(options.input, split, options.marks, prefix=options.patient_prefix)
        for split in ("train", "val")
    )
    if not texts:
        raise DataError(f"{options.input}: no report in the training split")
    model = train_tokenizer(texts, vocab=options.vocab, language=options.language)
    _replace(options.output, model)
    tokenizer = Tokenizer.load(options.output)
    shards = options.input.is_dir()
    card = {
        "digest": tokenizer.digest,
        "vocab": tokenizer.vocab,
        "language": options.language,
        "normalisation": NORMALISATION,
        "marks": options.marks,
        "sentencepiece": sentencepiece.__version__,
        "input": load_manifest(options.input)["name"] if shards else options.input.name,
        "input_sha256": sha256_of(options.input / MANIFEST if shards else options.input),
        "fertility": {
            "train": fertility(tokenizer, texts),
            "val": fertility(tokenizer, held_out),
        },
    }
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    _replace(options.output.with_suffix(".json"), text.encode())
    fits = [
        f"{of['per_word']:.2f} ({name})" for name, of in card["fertility"].items() if of["texts"]
    ]
    return (
        f"{options.output}: {tokenizer.vocab:,} pieces from {len(texts):,} texts; tokens a word:"
        f" {', '.join(fits)}"
    )


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m data_prep.tokenizer", description="reports -> tokenizer")
    parser.add_argument("--input", type=Path, required=True, metavar="PATH",
                        help="shards, or a table of reports")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.model")
    parser.add_argument("--vocab", type=int, required=True, metavar="N", help="pieces")
    parser.add_argument("--language", choices=LANGUAGES, default="en")
    parser.add_argument("--marks", choices=get_args(Marks), default="keep",
                        help="what to do with XXXX and ___")  # fmt: skip
    parser.add_argument("--patient-prefix", default="", metavar="TEXT",
                        help="before a table's patients, as in data_prep.reports")  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.input.exists():
        raise UsageError(f"--input {options.input}: not there")
    if options.output.suffix != ".model" or not options.output.parent.is_dir():
        raise UsageError(f"--output {options.output}: to be NAME.model in a folder that is there")
    if not 300 <= options.vocab <= 1_000_000:  # 256 of them are the bytes
        raise UsageError(f"--vocab {options.vocab}: 300 to 1,000,000")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        print(make(_parse(arguments)))
    except UsageError as error:
        print(f"data_prep.tokenizer: {error}", file=sys.stderr)
        return USAGE
    except DataError as error:
        print(f"data_prep.tokenizer: {error}", file=sys.stderr)
        return BAD_DATA
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        print(f"data_prep.tokenizer: {type(error).__name__}: {error}", file=sys.stderr)
        return DISK
    return 0


if __name__ == "__main__":
    sys.exit(main())
