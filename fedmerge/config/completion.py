"""Completion in the shell: `python fedalg.py --alg<TAB>`, where the package argcomplete is installed and activated."""

import contextlib
import os


def complete(parser):
    """Answer a shell that asks how a command line may go on, and exit; return at once where none does.

    Scripts that call this say PYTHON_ARGCOMPLETE_OK within their first 1,024 bytes, for which argcomplete looks.
    """
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser, always_complete_options="long")
    return parser
