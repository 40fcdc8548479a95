"""How numbers of things are written in sentences."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts: "1 run", "2 runs". The plural of `noun` ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
