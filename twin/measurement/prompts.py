"""Prompts of a wanted length: what is in them does not matter to a scheduler, how long they are does."""

from __future__ import annotations

import random


def prompt_token_ids(seed: int, request: int, num_tokens: int, vocab_size: int) -> list[int]:
    """Return random token ids below `vocab_size`; the same for the same seed and number of the request.

    No two requests of one measurement share a beginning, so that a prefix cache cannot help.
    """
    draw = random.Random(f"{seed}/{request}")  # noqa: S311 - no secret
    return draw.choices(range(vocab_size), k=num_tokens)


def prompt_text(seed: int, request: int, num_words: int) -> str:
    """Return that many short random words, for servers that take no token ids: about one token each."""
    draw = random.Random(f"{seed}/{request}")  # noqa: S311 - no secret
    return " ".join(str(number) for number in draw.choices(range(10), k=num_words))
