"""Checkpoints on disk."""

from pathlib import Path

import pytest

from fedmerge.checkpoint.store import Checkpoints


@pytest.mark.parametrize("deleted", [0, 1])
def test_a_run_killed_as_its_checkpoints_are_deleted_has_the_newest(tmp_path, monkeypatch, deleted):
    """The one before it would train the last rounds again, over the weights that are written already."""
    kept = Checkpoints(tmp_path, "run")
    for rounds in (1, 2):
        kept.save({"rounds": rounds})
    before = []

    def unlink(path, missing_ok=False, of=Path.unlink):
        if len(before) == deleted:
            raise KeyboardInterrupt
        before.append(path)
        of(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            kept.remove()
    assert next(state for _, state in kept.load("cpu")) == {"rounds": 2}
    kept.remove()
    assert not kept.exist()
