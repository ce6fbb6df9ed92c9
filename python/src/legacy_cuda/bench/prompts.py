"""Prompts of a known length, without a tokenizer and without data. Pure.

Words of four letters in an order drawn from a seed. Nearly every tokenizer has each of them, with
its blank, as one token, and a tokenizer of bytes as five: so the length in tokens is a straight
line over the number of words, and two answers of the server are enough to know it. Prompts of
different seeds differ from the first words on, so that no prefix cache helps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_TEXT = (
    "able also area away baby back ball bank base bird blue boat body book born both call came "
    "care case city cold come cook cost dark data date days deal door down draw each east easy "
    "even ever face fact fall farm fast feel fell felt find fine fire fish five food form four "
    "free from full game gave girl give goes gold gone good grow half hall hand hard have head "
    "hear heat held help here high hill hold home hope hour idea into join just keep kept kind "
    "king knew know lady lake land last late lead left less life like line list live long look "
    "lost made main make many mark mean meet mile mind miss moon more most move much must name "
    "near need next nine none noon nose"
)
WORDS = tuple(_TEXT.split())


def text(seed: str, words: int) -> str:
    """So many words, always the same for a seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@dataclass(frozen=True)
class Length:
    """How many tokens a prompt has: ``fixed`` for the template and what else the server adds, and
    ``per_word``. ``counted_by`` says where that is from; ``none``: a word is taken for a token."""

    fixed: float
    per_word: float
    counted_by: str

    def words(self, tokens: int) -> int:
        """Words for so many tokens, the nearest; less than 1 where the template alone is longer."""
        return round((tokens - self.fixed) / self.per_word)


UNKNOWN = Length(0.0, 1.0, "none")
SMALL, LARGE = 16, 80
"""Words of the two prompts that lengths are found with."""


def length(small: int, large: int, counted_by: str) -> Length | None:
    """The line through the tokens of ``SMALL`` and of ``LARGE`` words; None if it does not rise."""
    per_word = (large - small) / (LARGE - SMALL)
    if per_word <= 0:
        return None
    return Length(small - SMALL * per_word, per_word, counted_by)


def corrected(before: Length, words: int, tokens: float) -> Length:
    """The line moved so that it goes through a longer prompt that was counted too."""
    return Length(before.fixed, (tokens - before.fixed) / words, before.counted_by)
