"""Amounts as a person reads them."""


def size(amount: float) -> str:
    """Bytes: ``26.3 GB``."""
    for unit, power in (("GB", 9), ("MB", 6), ("KB", 3)):
        if amount >= 10**power:
            return f"{amount / 10**power:.{2 if amount < 10 ** (power + 1) else 1}f} {unit}"
    return f"{amount:.0f} bytes"


def duration(seconds: float) -> str:
    """``1 h 5 min``, ``2 min 10 s`` or ``8.1 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
