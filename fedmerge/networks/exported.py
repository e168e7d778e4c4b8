"""Networks in the formats of other programs: safetensors and ONNX."""

import io
import json
import logging
import warnings

import torch
from torch import nn

from fedmerge.errors import InputError, reason

OPSET = 18


def safetensors_of(state, metadata):
    """Return the bytes of a safetensors file with the tensors {name: tensor} and metadata {name: text}."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in state.items()}, metadata)


def read_safetensors(data):
    """Return the tensors {name: tensor} and the metadata {name: text} in the bytes of a safetensors file.

    Raises InputError if they are none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)  # which checks the header that is read below
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"not a safetensors file ({reason(error)})") from None
    return tensors, header.get("__metadata__") or {}


class OfPixels(nn.Module):
    """A network that takes pixels between 0 and 1, [B, C, H, W], and normalises and enlarges them itself."""

    def __init__(self, module, mean, std, enlarged=None):
        """mean, std: [C], of such pixels; enlarged: to so many, None to leave them."""
        super().__init__()
        self.module, self.enlarged = module, enlarged
        self.register_buffer("mean", mean[:, None, None].clone())
        self.register_buffer("std", std[:, None, None].clone())

    def forward(self, images):
        x = (images - self.mean) / self.std
        if self.enlarged is not None:
            x = nn.functional.interpolate(x, (self.enlarged, self.enlarged), mode="bilinear")
        return self.module(x)


def onnx_of(module, splits, metadata):
    """Return the bytes of an ONNX model: `images` float32 [batch, C, H, W], pixels between 0 and 1, to `logits`.

    module: in evaluation mode on the CPU; splits: a datasets.Splits, for the shape of images, and how they are
    normalised and enlarged; metadata: {name: text}. Raises InputError if it cannot be expressed in ONNX.
    """
    import onnx

    shape = splits.train.images.shape[1:]
    whole = OfPixels(module, splits.mean.cpu(), splits.std.cpu(), splits.enlarged).eval()
    batch = torch.export.Dim("batch")
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of its own parts that it will replace
            program = torch.onnx.export(
                whole,
                (torch.zeros(2, *shape),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
            )
    except Exception as error:  # exporters have many ways to fail
        raise InputError(f"this network cannot be written as ONNX ({reason(error)[:300]})") from None
    finally:
        logger.setLevel(level)
    model, file = program.model_proto, io.BytesIO()
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)
    return file.getvalue()
