"""Numbers as people read them."""

from __future__ import annotations

import math

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def si(value: int | float, digits: int = 3) -> str:
    """A number with an SI prefix and `digits` significant digits: 826 G."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{significant(value, digits)} {_PREFIXES[power]}".rstrip()


def significant(value: int | float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent while it is of ordinary size."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    decimals -= abs(round(value, decimals)) >= 10 ** (digits - decimals)  # rounding gave one digit more: 9.999
    return f"{value:.{max(0, decimals)}f}"


def flops(value: int | float) -> str:
    """Floating-point operations: 826 GFLOP."""
    number, _, prefix = si(value).partition(" ")
    return f"{number} {prefix}FLOP"


def percent(share: int | float, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return f"{100 * share:.{digits}f}%"


def signed_percent(share: int | float) -> str:
    """A change as a percentage with its sign; none where it rounds to nothing."""
    text = f"{100 * share:+.1f}%"
    return "0.0%" if text[1:] == "0.0%" else text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: int | float) -> str:
    """Seconds as '41 s', '12.5 min', '3.2 h' or '21 days'."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{significant(seconds / unit)} {name}"
    return f"{significant(seconds / 86400)} days"
