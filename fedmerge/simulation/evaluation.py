"""What a model reaches: its predictions, losses and accuracies."""

import math
import time

import torch
import torch.nn.functional as F

from fedmerge import datasets


class Evaluator:
    """Judges models on a dataset's splits."""

    def __init__(self, model, splits, bf16=False):
        """model: the networks.FlatModel to do it with; splits: datasets.Splits on its device."""
        self.model, self.splits, self.bf16 = model, splits, bf16

    @torch.no_grad()
    def predict(self, vector, images, places=None, model=None):
        """Return the logits float32 [N, n_classes] of the model `vector [dim]` on Images, at least one.

        places, int64 [N]: of those among the images that are wanted; all if not given. model: another FlatModel to do
        it with.
        """
        model, size = model or self.model, datasets.batch_size(images, self.splits.image_size)
        model.load(vector)
        model.module.eval()
        pixels, logits = images.images, []
        for batch in pixels.split(size) if places is None else (pixels[chosen] for chosen in places.split(size)):
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.bf16):
                logits.append(model.module(self.splits.normalise(batch)))
        return torch.cat(logits).float()

    def evaluate(self, server, parts, images):
        """Return mean loss and accuracy of a Server's model on Images, the predictions int64 [N], and the Images of
        these.

        Under --shift feature, an algorithm with personal models is judged by them: each client's on its own domain.
        parts: each client's indices into the training data.
        """
        shared, of_domains = server.common(), server.settings.shift == "feature"
        own = self.own_images(parts, images) if server.algorithm.personalises and of_domains else {}
        if own:
            found = [self.predict(server.algorithm.client_model(shared, n), part) for n, part in own.items()]
            logits, images = torch.cat(found), datasets.join(own.values())
        else:
            logits = self.predict(server.served(), images)
        predictions = logits.argmax(1)
        loss = F.cross_entropy(logits, images.labels).item()
        return loss, (predictions == images.labels).sum().item() / len(images), (predictions, images)

    def own_images(self, parts, images):
        """Return {client: the Images of its domain} of the clients that have samples, where there are any."""
        domains = self.splits.train.domains
        own = {n: images[images.domains == domains[part].mode().values] for n, part in enumerate(parts) if len(part)}
        return {client_id: part for client_id, part in own.items() if len(part)}

    def columns(self, server, parts):
        """Return {column: figure} of what the Server's model reaches, on all training data with --eval_train, and what
        the test set is judged by: predictions, and the Images of these. Raises FloatingPointError for a loss that is
        not finite.
        """
        started, row = time.perf_counter(), {}
        if server.settings.eval_train:
            row["train_losses"], row["train_accs"], _ = self.evaluate(server, parts, self.splits.train)
        if len(self.splits.val):
            row["val_losses"], row["val_accs"], _ = self.evaluate(server, parts, self.splits.val)
        row["test_losses"], row["test_accs"], judged = self.evaluate(server, parts, self.splits.test)
        row["eval_seconds"] = time.perf_counter() - started
        if not math.isfinite(row.get("val_losses", 0.0) + row["test_losses"]):
            raise FloatingPointError("the loss of the merged model is not finite; try a smaller --lr")
        return row, judged
