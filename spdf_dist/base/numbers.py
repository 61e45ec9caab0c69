"""Numbers as short text, for tables, figures and the terminal."""

from __future__ import annotations

MINUS = "−"


def short_count(value: float) -> str:
    """A count as short text: 125226240 as 125M."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def power_label(value: float) -> str:
    """A number with a power of ten, such as 2.5e15."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def time_unit(seconds: float) -> tuple[float, str]:
    """(divisor, unit) with which ``seconds`` has a readable size."""
    for name, scale in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * scale:
            return scale, name
    return 1.0, "seconds"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number and its noun, such as '1 rank' or '1,024 ranks'. ``many``: the plural, by default ``one`` and an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """A duration with the symbol of a suitable unit, such as '3.25 h' or '0.15 s'."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, such as +0.012 or −0.012."""
    return f"{value:+.{digits}f}".replace("-", MINUS)
