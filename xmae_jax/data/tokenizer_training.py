"""Train a SentencePiece model on texts, the same bytes each time."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import sentencepiece

from xmae_jax.data.manifest import DataError
from xmae_jax.data.text import MARK

# Coverage: what SentencePiece advises for scripts of many characters, and nearly all for others.
# Words of Chinese have up to four characters, and no blank stands before a text.
LANGUAGES: dict[str, dict[str, Any]] = {
    "en": dict(character_coverage=0.9999),
    "zh": dict(character_coverage=0.9995, max_sentencepiece_length=4, add_dummy_prefix=False),
}
_BOUND = re.compile(r"<= (?P<most>\d+)|vs (?P<least>\d+)")


def train_tokenizer(
    texts: Sequence[str], *, vocab: int, language: str, fewer: bool = False
) -> bytes:
    """Train a model; DataError if the texts do not give so many pieces.

    fewer: take as many as they give, if that is not so many.
    """
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            vocab_size=vocab,
            model_type="unigram",
            byte_fallback=True,
            normalization_rule_name="identity",  # texts are normalised already
            user_defined_symbols=[f"\u2581{MARK}", MARK],  # with a blank before it, and without
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=1 << 20,  # bytes; longer ones would be left out
            num_threads=1,  # sums in one order
            minloglevel=3,  # nothing of a report in a log
            **LANGUAGES[language],
        )
    except RuntimeError as error:
        bound = _BOUND.search(str(error))
        if bound is None:
            raise DataError(f"{len(texts):,} texts: SentencePiece cannot be trained") from None
        if fewer and bound["most"]:
            return train_tokenizer(texts, vocab=int(bound["most"]), language=language)
        told = f"allow {bound['most']} at most" if bound["most"] else f"need {bound['least']}"
        raise DataError(f"--vocab {vocab}: {len(texts):,} texts {told}") from None
    return out.getvalue()
