"""What a run says of itself."""

import json

import pytest

from fedmerge import saving
from fedmerge.reporting import run_record


def test_final_figures_by_hand(experiment):
    run = experiment()
    accuracies = [0.1 * i for i in range(10)] + [0.5, 0.7]
    run.history.rows = [
        {
            "epoch": i + 1,
            "test_accs": a,
            "val_accs": 1 - abs(i - 4),
            "bytes_up": 10,
            "bytes_down": 30,
            "train_seconds": 2.0,
        }
        for i, a in enumerate(accuracies)
    ]
    run.server.traffic = {3: [1, 5, 15], 8: [2, 10, 30]}
    run.history.judged = run.splits.test.labels.clone(), run.splits.test
    run.history.judged[0][run.splits.test.labels == 3] = 4
    final = run_record.final_figures(run)
    assert final["accuracy"] == 0.7
    assert final["accuracy_last10"] == pytest.approx(sum(accuracies[2:]) / 10)
    assert (final["best_val_round"], final["accuracy_best_val"]) == (5, accuracies[4])
    assert (final["communication"], final["bytes_up"], final["train_time"]) == (40, 120, 2.0)
    assert (final["bytes_per_client"], final["bytes_of_busiest_client"]) == (30, 40)
    n3, n4 = (int((run.splits.test.labels == c).sum()) for c in (3, 4))
    assert final["recall"] == pytest.approx(0.9)
    assert final["precision"] == pytest.approx((8 + n4 / (n3 + n4)) / 10)
    assert final["f1"] == pytest.approx((8 + 2 * n4 / (n3 + 2 * n4)) / 10)


def test_why_a_run_failed_is_in_its_record(tmp_path):
    saving.write_json(tmp_path / "x.json", {"run": "x", "finished": False, "failed": None})
    run_record.note_failure(tmp_path / "x.json", FloatingPointError("round 3, client 2: the loss is not finite"))
    assert json.loads((tmp_path / "x.json").read_text())["failed"].startswith("round 3, client 2")
    run_record.note_failure(tmp_path / "y.json", OSError("full"))
    assert not (tmp_path / "y.json").exists()


def test_a_finished_run_does_not_say_that_it_failed(tmp_path):
    saving.write_json(tmp_path / "x.json", {"run": "x", "finished": True, "failed": None})
    run_record.note_failure(tmp_path / "x.json", FloatingPointError("--save_clients: client 3 diverges"))
    assert json.loads((tmp_path / "x.json").read_text())["failed"] is None
