"""What a model reaches: its predictions, losses and accuracies. All functions take the fedalg.Experiment."""

import math
import time

import torch
import torch.nn.functional as F

from fedmerge import datasets
from fedmerge.datasets.batches import batch_size


def served(exp):
    """Return the model [dim] that the run is judged by; see `common`."""
    return exp.algorithm.deployed(common(exp))


def common(exp):
    """Return the model [dim] that all share: the server's, or, with a sparse downlink, the clients'.

    What a broadcast holds besides the server's model, as FedACG's does, is taken off again.
    """
    if exp.args.downlink != "sparse":
        return exp.theta
    broadcast = exp.algorithm.broadcast(exp.theta)
    return exp.downlink.model if broadcast is exp.theta else exp.downlink.model - (broadcast - exp.theta)


@torch.no_grad()
def predict(exp, vector, images, places=None, model=None):
    """Return the logits float32 [N, n_classes] of the model `vector [dim]` on data.Images, at least one.

    places, int64 [N]: of those among the images that are wanted; all if not given. model: the FlatModel to do it with.
    """
    model, size = model or exp.model, batch_size(images)
    model.load(vector)
    model.module.eval()
    pixels, logits = images.images, []
    for batch in pixels.split(size) if places is None else (pixels[chosen] for chosen in places.split(size)):
        with torch.autocast(exp.device.type, torch.bfloat16, enabled=exp.args.precision == "bf16"):
            logits.append(model.module(exp.splits.normalise(batch)))
    return torch.cat(logits).float()


def evaluate(exp, images):
    """Return mean loss and accuracy of the model on data.Images, the predictions int64 [N], and the Images of these.

    Under --shift feature, an algorithm with personal models is judged by them: each client's on its own domain.
    """
    own = own_images(exp, images) if exp.algorithm.personalises and exp.args.shift == "feature" else {}
    if own:
        shared = common(exp)
        found = [predict(exp, exp.algorithm.personal(shared, number), part) for number, part in own.items()]
        logits, images = torch.cat(found), datasets.join(own.values())
    else:
        logits = predict(exp, served(exp), images)
    predictions = logits.argmax(1)
    loss = F.cross_entropy(logits, images.labels).item()
    return loss, (predictions == images.labels).sum().item() / len(images), (predictions, images)


def own_images(exp, images):
    """Return {client: the data.Images of its domain} of the clients that have samples, where there are any."""
    domains = exp.splits.train.domains
    own = {n: images[images.domains == domains[part].mode().values] for n, part in enumerate(exp.parts) if len(part)}
    return {number: part for number, part in own.items() if len(part)}


def evaluate_round(exp, row):
    """Add what the server's model reaches on validation, test and (--eval_train) all training data to `row`."""
    started = time.perf_counter()
    if exp.args.eval_train:
        row["train_losses"], row["train_accs"], _ = evaluate(exp, exp.splits.train)
    row["val_losses"], row["val_accs"], _ = evaluate(exp, exp.splits.val)
    row["test_losses"], row["test_accs"], exp.judged = evaluate(exp, exp.splits.test)
    row["eval_seconds"] = time.perf_counter() - started
    if not math.isfinite(row["val_losses"] + row["test_losses"]):
        raise FloatingPointError(
            f"round {row['epoch']}: the loss of the merged model is not finite; try a smaller --lr"
        )
