"""Bounds of the sizes of networks, which are read from files that cannot be trusted.

Within the bounds a network can be built on the meta device in little time; published models are far below them.
"""

import math
from dataclasses import fields
from typing import Any, cast

MAX_DEPTH = 1024
MAX_WIDTH = 2**18
"""Also of an MLP, of an image's side, of heads, queries and frames."""
MAX_ROWS = 2**24
"""Of embeddings and positions."""
MAX_EPS = 0.1
_MOST = {"depth": MAX_DEPTH, "vocab_size": MAX_ROWS, "max_positions": MAX_ROWS}


def check_sizes(config: Any, *, may_be_zero: tuple[str, ...] = ()) -> None:
    """Check every field of a dataclass of sizes that is a whole number by its type, and the heads.

    Args:
        config: the dataclass; with the fields `width` and `num_heads`, the heads must divide the width.
        may_be_zero: names of fields that may be 0.

    Raises:
        ValueError: a size is not a whole number, is too small or too large, or the heads do not divide the width.
    """
    for field in fields(config):
        if field.type in (int, "int"):
            check_whole(
                field.name,
                getattr(config, field.name),
                least=0 if field.name in may_be_zero else 1,
                most=_MOST.get(field.name, MAX_WIDTH),
            )
    width, num_heads = getattr(config, "width", 0), getattr(config, "num_heads", 1)
    if width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide the width {width}")


def check_whole(name: str, value: object, *, least: int = 1, most: int = MAX_WIDTH) -> None:
    """Check one size.

    Raises:
        ValueError: it is not a whole number of this range; True and 4.0 are none.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")


def check_eps(name: str, value: object) -> None:
    """Check the epsilon of a norm.

    Raises:
        ValueError: it is not a number above 0 and at most `MAX_EPS`.
    """
    if type(value) not in (int, float) or not 0 < cast("float", value) <= MAX_EPS:
        raise ValueError(f"{name} must be a number above 0, at most {MAX_EPS}, not {shown(value)}")


def check_ratio(name: str, value: object) -> None:
    """Check the ratio of two widths.

    Raises:
        ValueError: it is not a number above 0 and at most 64.
    """
    if type(value) not in (int, float) or not math.isfinite(cast("float", value)) or not 0 < cast("float", value) <= 64:
        raise ValueError(f"{name} must be a number above 0, at most 64, not {shown(value)}")


def shown(value: object) -> str:
    """Return a value of a file for an error message, cut if it is long."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}…"
