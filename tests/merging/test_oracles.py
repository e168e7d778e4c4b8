"""Merging rules against the functions of FusionBench and mergekit, in an environment of their own: `make oracles`."""

import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from fedmerge.merging import Aggregate, Arrival, task_masks
from fedmerge.networks import Layout
from fedmerge.registry import MERGING_RULES

PYTHON = ROOT / ".venv-oracles" / "bin" / "python"
SHAPES = {"matrix": (20, 40), "square": (30, 30), "tall": (50, 10), "vector": (30,)}
KEEP, OUTLIERS, LAMBDA = 0.2, 0.1, 0.4
OPTIONS = {
    "ties": {"ties_keep": KEEP},
    "model_stock": {},
    "iso_c": {"iso_scale": 1.0},
    "tsv_m": {"tsv_scale": 1.0},
    "breadcrumbs": {"breadcrumbs_keep": KEEP, "breadcrumbs_outliers": OUTLIERS, "breadcrumbs_scale": 1.0},
    "consensus": {"consensus_clients": 2, "consensus_lambda": LAMBDA},
    "emr": {},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """{number of clients: (their updates, {rule: {name: tensor}})} of random updates of equal weight."""
    if not PYTHON.exists():
        pytest.skip("no .venv-oracles with FusionBench and mergekit: make oracles")
    folder, found = tmp_path_factory.mktemp("oracles"), {}
    for clients in (2, 5):
        g = torch.Generator().manual_seed(clients)
        common, *own = (
            {name: torch.randn(s, generator=g, dtype=torch.float64) for name, s in SHAPES.items()}
            for _ in range(clients + 1)
        )
        updates = [{name: common[name] + t for name, t in one.items()} for one in own]  # cosines of a half
        torch.save({"updates": updates, "keep": KEEP, "outliers": OUTLIERS, "threshold": LAMBDA}, folder / "in.pt")
        script = Path(__file__).with_name("oracles.py")
        subprocess.run(
            [PYTHON, script, folder / "in.pt", folder / "out.pt"], check=True, capture_output=True, text=True
        )
        found[clients] = updates, torch.load(folder / "out.pt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("clients", [2, 5])
@pytest.mark.parametrize("rule", OPTIONS)
def test_updates_are_merged_as_by_others(theirs, rule, clients):
    if rule == "model_stock" and clients > 2:
        pytest.skip("of more than two models, FusionBench averages the angles, not the cosines")
    updates, merged = theirs[clients]
    sizes = tuple(t.numel() for t in updates[0].values())
    layout = Layout(tuple(SHAPES), sizes, sum(sizes), sum(sizes), shapes=tuple(SHAPES.values()))
    deltas = torch.stack([torch.cat([t.flatten() for t in update.values()]) for update in updates])
    aggregate = Aggregate([Arrival(i, 1, 1, 1) for i in range(clients)], {"update": deltas.mean(0)}, deltas)
    mine = MERGING_RULES[rule](aggregate, layout, **OPTIONS[rule]).split(sizes)
    for (name, expected), got in zip(merged[rule].items(), mine, strict=True):
        # The singular values of their sum are that many times those of the mean.
        scale = clients if rule == "iso_c" and expected.dim() > 1 else 1
        torch.testing.assert_close(scale * got.view_as(expected), expected, msg=lambda said, n=name: f"{n}: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("clients", [2, 5])
def test_masks_and_rescalers_of_clients_are_those_of_others(theirs, clients):
    updates, merged = theirs[clients]
    own = [torch.cat([t.flatten() for t in update.values()]) for update in updates]
    mean = sum(own) / clients
    common = torch.cat([t.flatten() for t in merged["emr"].values()])
    for i, one in enumerate(own):
        assert torch.equal(task_masks.tall_mask(one, mean, LAMBDA), merged["tall_masks"][i])
        mask = task_masks.same_direction(one, common)
        assert torch.equal(mask, merged["emr_masks"][i])
        ours = task_masks.rescaler(one, common, mask)
        torch.testing.assert_close(ours.float(), merged["emr_rescalers"][i])
