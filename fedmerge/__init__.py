"""Federated learning by merging models: `fedmerge.run(algorithm="las", dataset="DIGITS")`.

The rooms are described in docs/architecture.md. Nothing here imports torch before it is needed.
"""

__all__ = ["Run", "compare", "load_rounds", "load_runs", "run"]


def __getattr__(name):
    if name in ("Run", "run"):
        from fedmerge import api

        return getattr(api, name)
    if name in __all__:
        from fedmerge.reporting import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
