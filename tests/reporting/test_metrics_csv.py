"""The CSV of a run: a row a round, whole or not there."""

import pytest

from fedmerge.reporting import metrics_csv


def test_every_row_of_the_metrics_is_on_disk_when_it_is_written(tmp_path):
    with metrics_csv.MetricsCSV(tmp_path / "m.csv", ["epoch", "loss"], [{"epoch": 1, "loss": 0.5}]) as metrics:
        metrics.write({"epoch": 2})
        assert (tmp_path / "m.csv").read_text().split() == ["epoch,loss", "1,0.5", "2,"]
        (tmp_path / "m.csv").rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="was removed while the run wrote to it"):
            metrics.write({"epoch": 3})


def test_metrics_that_became_a_link_are_not_followed(tmp_path):
    with metrics_csv.MetricsCSV(tmp_path / "m.csv", ["epoch"]) as metrics:
        (tmp_path / "m.csv").rename(tmp_path / "real")
        (tmp_path / "m.csv").symlink_to(tmp_path / "real")
        with pytest.raises(OSError, match="was removed while the run wrote to it"):
            metrics.write({"epoch": 1})
