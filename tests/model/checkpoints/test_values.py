"""Published tensors must be dense finite numbers in floating point."""

import pytest
import torch
from torch import Tensor

from model.checkpoints.values import check_values
from model.weights import WeightsError

ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        *((ONES.to(dtype), "must be in float16") for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64)),
        *((ONES.to(dtype), "must be in float16") for dtype in (torch.complex128, torch.float8_e4m3fn)),
        (ONES.to_sparse(), "not dense"),
        (ONES.to("meta"), "holds no values for"),
        (ONES * float("nan"), "is damaged"),
        (ONES * float("inf"), "is damaged"),
    ],
)
def test_other_values_are_refused_by_key_and_file(tensor: Tensor, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"adapter.bin .*{message}|{message}") as refused:
        check_values({"a.weight": tensor}, file="adapter.bin")
    assert "a.weight" in str(refused.value)
    check_values({"a.position_ids": tensor}, file="adapter.bin")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_accepted(dtype: torch.dtype) -> None:
    check_values({"a.weight": ONES.to(dtype)}, file="adapter.bin")
