"""Matrices merged so that their outputs stay as near as can be to what each client's makes of its own inputs."""

from itertools import accumulate

import torch

from fedmerge.registry import merging_rule

RIDGE = 1e-6  # of the mean of the diagonal: inputs that are always 0 leave their weights to the plain mean


def merged_layers(layout, largest):
    """Return [(begin, end, inputs)] of the matrices in a vector of the weights that have so many inputs at most."""
    ends = list(accumulate(layout.sizes, initial=0))
    return [(a, b, n) for a, b, n in zip(ends, ends[1:], layout.inputs, strict=False) if 0 < n <= largest]


def lengths(layout, regmean_largest, **others):
    """Return how many numbers a client sends: of each symmetric matrix, one half."""
    return {"gram": sum(n * (n + 1) // 2 for _, _, n in merged_layers(layout, regmean_largest))}


def measure(client, regmean_largest, regmean_samples, **others):
    layout = client.model.layout
    names = [name for name, n in zip(layout.names, layout.inputs, strict=True) if 0 < n <= regmean_largest]
    grams = client.input_grams(names, regmean_samples)
    halves = [gram[tuple(torch.triu_indices(*gram.shape, device=gram.device))] for gram in grams]
    return {"gram": torch.cat(halves) if halves else client.model.vector.new_empty(0)}


@merging_rule(
    "regmean",
    title="RegMean",
    paper="Jin et al. 2023",
    needs="all updates",
    weighted=True,
    uploads=("gram",),
    measure=measure,
    lengths=lengths,
    options={
        "regmean_largest": (600, "count", "inputs of a layer at most; larger ones are averaged"),
        "regmean_samples": (64, "count", "samples of a client by which it measures what its layers' inputs are like"),
        "regmean_shrink": (0.9, "share", "factor on all but the diagonal of these matrices"),
    },
)
def regmean(aggregate, layout, regmean_largest, regmean_samples, regmean_shrink):
    """matrices by least squares: outputs as near as can be to the clients' own, on their own inputs (Jin et al. 2023)

    A client measures G = X X^T / n of each layer's inputs X at its trained model, as in evaluation (of a kernel, of the
    patches), and sends one half of it, in float32. The merged step is sum p G (W - W0), p the clients' shares, times
    the inverse of sum p G (Eq. 2). Layers with more inputs, grouped and standardised convolutions, vectors and buffers
    are averaged.
    """
    shares, deltas = aggregate.shares(aggregate.deltas), aggregate.deltas
    step, at = shares @ deltas, 0
    for begin, end, n in merged_layers(layout, regmean_largest):
        half = aggregate.more["gram"][:, at : at + n * (n + 1) // 2]
        at += half.shape[1]
        grams = _whole(half.cpu().double(), n, regmean_shrink)
        changes = deltas[:, begin:end].view(len(shares), -1, n).cpu().double()
        p = shares.cpu().double()[:, None, None]
        total = (p * grams).sum(0)
        ridge = RIDGE * total.diagonal().mean() + torch.finfo(torch.float32).tiny
        right = (p * (changes @ grams)).sum(0) + ridge * (p * changes).sum(0)
        total.diagonal().add_(ridge)
        step[begin:end] = torch.linalg.solve(total, right.t()).t().flatten().to(step)
    return step


def _whole(half, n, shrink):
    """Return the symmetric matrices [clients, n, n] of their upper halves, all but the diagonals times `shrink`."""
    whole = half.new_zeros(len(half), n, n)
    rows, columns = torch.triu_indices(n, n)
    whole[:, rows, columns] = whole[:, columns, rows] = half
    diagonal = whole.diagonal(dim1=1, dim2=2).clone()
    whole *= shrink
    whole.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return whole
