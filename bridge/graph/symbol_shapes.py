"""Shapes as MXNet's operators describe them: codes of Reshape, parts of reshape_like, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

Shape = tuple[int, ...]


def reshaped(shape: Sequence[int], codes: Sequence[int], reverse: bool = False) -> Shape:
    """Return the shape that ``Reshape(shape=codes)`` gives an array of `shape`.

    Codes: n > 0 is a size; 0 copies a size; -1 is what is left; -2 copies all that are left; -3
    multiplies two; -4 splits one into the two that follow, one of which may be -1. With `reverse`
    everything is read from the right.

    Raises
    ------
    ValueError
        When the codes do not fit the shape.
    """
    if reverse:
        return reshaped(list(shape)[::-1], _reversed_codes(codes))[::-1]
    source, result, unknown = list(shape), [], None
    place = at = 0
    while at < len(codes):
        code = codes[at]
        at += 1
        if code == -2:
            result += source[place:]
            place = len(source)
        elif code == -3:
            _need(place + 2 <= len(source), shape, codes)
            result.append(source[place] * source[place + 1])
            place += 2
        elif code == -4:
            _need(place < len(source) and at + 2 <= len(codes), shape, codes)
            result += _split(source[place], codes[at], codes[at + 1])
            place, at = place + 1, at + 2
        elif code == -1:
            _need(unknown is None, shape, codes)
            unknown = len(result)
            result.append(1)
            place += 1
        else:
            _need(code > 0 or (code == 0 and place < len(source)), shape, codes)
            result.append(code or source[place])
            place += 1
    size, known = math.prod(source), math.prod(result)
    if unknown is not None and known:
        result[unknown] = size // known
    _need(math.prod(result) == size, shape, codes)
    return tuple(result)


def _reversed_codes(codes: Sequence[int]) -> list[int]:
    """Reverse the codes, each -4 still before the two sizes that belong to it."""
    groups, at = [], 0
    while at < len(codes):
        step = 3 if codes[at] == -4 else 1
        group = list(codes[at : at + step])
        groups.append(group if step == 1 else [-4, *group[:0:-1]])
        at += step
    return [code for group in groups[::-1] for code in group]


def _split(size: int, first: int, second: int) -> list[int]:
    if first == -1 and second > 0:
        first = size // second
    elif second == -1 and first > 0:
        second = size // first
    if first * second != size or min(first, second) < 0:
        raise ValueError(f"{size} cannot be split into {first} and {second}")
    return [first, second]


def _need(fits: bool, shape: Sequence[int], codes: Sequence[int]) -> None:
    if not fits:
        raise ValueError(f"an array of shape {tuple(shape)} cannot be reshaped to {tuple(codes)}")


def span(length: int, begin: Optional[int], end: Optional[int]) -> tuple[int, int]:
    """Return first and last + 1 of a part of `length` axes or entries; negative from the end."""
    first = 0 if begin is None else begin + (length if begin < 0 else 0)
    last = length if end is None else end + (length if end < 0 else 0)
    return max(first, 0), min(last, length)


def reshaped_like(
    left: Sequence[int],
    right: Sequence[int],
    left_part: tuple[Optional[int], Optional[int]],
    right_part: tuple[Optional[int], Optional[int]],
) -> Shape:
    """Return the shape `left` with some of its axes replaced by some of `right`."""
    begin, end = span(len(left), *left_part)
    source = slice(*span(len(right), *right_part))
    return (*left[:begin], *tuple(right)[source], *left[end:])


def pooled_length(length: int, kernel: int, stride: int, pad: int, full: bool) -> int:
    """Return how many windows there are along one axis; `full` counts the one that sticks out."""
    room = length + 2 * pad - kernel
    if room < 0:
        raise ValueError(f"a window of {kernel} does not fit into {length} with {pad} beside it")
    return 1 + (-(-room // stride) if full else room // stride)
