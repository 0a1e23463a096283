"""Durations as text."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """`89 s`, `12 min`, `3.5 h`: in the largest unit that leaves at least one and a half."""
    for unit, name in _UNITS:
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} min" if name == "min" else f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
