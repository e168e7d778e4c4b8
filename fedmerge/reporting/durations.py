"""How long something takes, in words."""

import math


def duration(seconds):
    """Return in words, roughly, how long that is."""
    if math.isnan(seconds):
        return "unknown"
    for unit, name, most in ((1, "s", 120), (60, "min", 7200), (3600, "h", 3 * 86400)):
        if seconds < most:
            return f"{max(0, seconds) / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
