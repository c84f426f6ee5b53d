"""Checks the values of published tensors: dense numbers in floating point, all of them finite."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.weights import WeightsError, is_float

_BUFFER = re.compile(r"(.+\.)?(position_ids|inv_freq)")
"""Buffers that follow from the sizes and are never loaded; they may be whole numbers."""


def check_values(tensors: Mapping[str, Tensor], *, file: str) -> None:
    """Check tensors that are to be loaded; buffers are left out.

    Args:
        tensors: by their keys in the file.
        file: its name, for the error message.

    Raises:
        WeightsError: a tensor has values that cannot be weights, or that are not finite.
    """
    for key in sorted(tensors):
        check_kind(key, tensors[key], file=file)
        if not _BUFFER.fullmatch(key) and not tensors[key].isfinite().all():
            raise WeightsError(f"{file} is damaged: {key} has values that are not finite.")


def check_kind(key: str, tensor: Tensor, *, file: str) -> None:
    """Check that a tensor is dense, has its values, and has a dtype of weights; buffers are left out.

    Raises:
        WeightsError: it is not, e.g. because it is quantised.
    """
    if _BUFFER.fullmatch(key):
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu":
        raise WeightsError(f"{file} holds no values for {key}. Get it again.")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        raise WeightsError(f"{file} holds {key} as a tensor that is not dense; only dense ones are supported.")
    if not is_float(tensor):
        raise WeightsError(
            f"{file} holds {key} in {dtype}; weights must be in float16, bfloat16, float32 or float64, and not "
            "quantised."
        )


def check_rounded(name: str, tensor: Tensor, *, file: str) -> None:
    """Check a tensor that was computed from published ones or cast to another dtype.

    Raises:
        WeightsError: it has values that are not finite.
    """
    if not tensor.isfinite().all():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{name} of {file} has values that do not fit into {dtype}; the file may be damaged.")
