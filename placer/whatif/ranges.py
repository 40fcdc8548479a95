"""Numbers as people type them for a sweep: ``0.5,1,2`` or ``0.5:3:0.25``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

MOST_VALUES = 10_000
# Larger numbers are typing errors, and take long to count from and to.
_LARGEST = Decimal(10) ** 18
_LONGEST_TEXT = 100_000


def expanded(text: str) -> list[float | int]:
    """Return the numbers of a text.

    Parameters
    ----------
    text
        Numbers and ranges, separated by commas. A range is ``FIRST:LAST:STEP`` with a step above 0; `LAST` is part of
        it where a step ends there. Steps are decimal: ``0.1:0.3:0.1`` has three numbers.

    Returns
    -------
    In the order of the text; whole numbers as `int`.

    Raises
    ------
    ValueError
        When it is no such text, or stands for more than `MOST_VALUES` numbers.
    """
    numbers: list[Decimal] = []
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"values must be at most {_LONGEST_TEXT:,} characters. Got {len(text):,}.")
    for part in text.split(","):
        try:
            ends = [Decimal(entry.strip()) for entry in part.split(":")]
        except InvalidOperation as error:
            raise _no_range(text) from error
        if not all(end.is_finite() for end in ends) or len(ends) not in {1, 3}:
            raise _no_range(text)
        if any(abs(end) > _LARGEST for end in ends):
            raise ValueError(f"values must be between -1e18 and 1e18. Got {part.strip()[:40]!r}.")
        if len(ends) == 1:
            numbers += ends
            continue
        first, last, step = ends
        if step <= 0 or last < first:
            raise _no_range(text)
        count = int((last - first) / step) + 1
        if count > MOST_VALUES:
            raise ValueError(f"values must be at most {MOST_VALUES:,}. {text!r} has {count:,}.")
        numbers += [first + step * index for index in range(count)]
    return [int(number) if number == number.to_integral_value() else float(number) for number in numbers]


def _no_range(text: str) -> ValueError:
    return ValueError(
        f"values must be numbers separated by commas, or FIRST:LAST:STEP with FIRST <= LAST and STEP > 0. Got {text!r}."
    )
