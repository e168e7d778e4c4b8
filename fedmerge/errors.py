"""What is said to who uses the program: errors in one line, and what may have been meant."""

import difflib


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what to change."""


def did_you_mean(word, known, before=""):
    """Return " (did you mean X?)", X that of `known` which is nearest to `word`, upper case or not; "" if none is."""
    of = {name.lower(): name for name in known}
    return "".join(f" (did you mean {before}{of[n]}?)" for n in difflib.get_close_matches(word.lower(), of, n=1))


def reason(error):
    """Return what an exception says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
