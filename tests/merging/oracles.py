"""Merge updates by the functions of FusionBench and mergekit, in an environment that has them (see test_oracles.py).

    python oracles.py UPDATES.pt MERGED.pt

UPDATES.pt holds {"updates": [{name: tensor}, a client each], "keep": share, "outliers": share, "threshold": lambda of
TALL masks}; MERGED.pt gets {rule: {name: tensor}}, and of the clients "tall_masks", "emr_masks" and "emr_rescalers".
"""

import sys

import torch
from fusion_bench.method.emr_merging.utils import emr_merge
from fusion_bench.method.isotropic_merging.iso_utils import iso_c
from fusion_bench.method.model_stock.model_stock import compute_angle, compute_ratio
from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from mergekit.sparsify import magnitude_outliers


def merged(updates, keep, outliers, threshold):
    names, n = list(updates[0]), len(updates)
    flat = torch.stack([torch.cat([update[name].flatten() for name in names]) for update in updates])
    fewer = (round(keep * flat.shape[1]) - 0.5) / flat.shape[1]  # it keeps one more than it is told to
    ties = ties_merging(flat, reset_thresh=fewer, merge_func="dis-mean").split([t.numel() for t in updates[0].values()])
    origin = {name: torch.zeros_like(t) for name, t in updates[0].items()}
    ratio = compute_ratio(compute_angle(*updates[:2], origin), k=2)
    trimmed = [{name: magnitude_outliers(t, keep, gamma=outliers) for name, t in update.items()} for update in updates]
    means = {name: sum(update[name] for update in updates) / n for name in names}
    masks = [generate_task_masks(means, update, origin, threshold) for update in updates]
    common, common_masks, _ = emr_merge(updates)
    _, _, rescalers = emr_merge([{"all": one} for one in flat])  # of several tensors, it adds up their means, not sums
    return {
        "consensus": {name: means[name] * (sum(mask[name] for mask in masks) >= 2) for name in names},
        "tall_masks": [torch.cat([mask[name].flatten() for name in names]) > 0 for mask in masks],
        "emr": common,
        "emr_masks": [torch.cat([common_masks[name][i].flatten() for name in names]) for i in range(n)],
        "emr_rescalers": rescalers,
        "ties": {name: part.view_as(updates[0][name]) for name, part in zip(names, ties, strict=True)},
        "model_stock": {name: ratio[name] * (updates[0][name] + updates[1][name]) / 2 for name in names},
        "iso_c": iso_c([{name: t.clone() for name, t in update.items()} for update in updates], accelerator="cpu"),
        "tsv_m": compute_and_sum_svd_mem_reduction(updates, accelerator="cpu"),
        "breadcrumbs": {name: sum(update[name] for update in trimmed) / n for name in names},
    }


if __name__ == "__main__":
    torch.save(merged(**torch.load(sys.argv[1])), sys.argv[2])
