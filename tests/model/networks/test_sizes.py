"""Impossible sizes are refused by name, wherever they come from."""

from dataclasses import asdict
from typing import Any

import pytest

from model.networks.clip import CLIP_LARGE, ClipVisionConfig
from model.networks.llama import DecoderConfig

DECODER: dict[str, Any] = {"vocab_size": 32000, "width": 4096, "depth": 32, "num_heads": 32, "mlp_width": 11008}


@pytest.mark.parametrize(
    "values",
    [
        *({"width": value} for value in (None, "32", -32, 4096.0, [1], 0, 10**400)),
        *({"num_heads": value} for value in (0, 3, 4.0, True)),
        *({"depth": value} for value in (True, 10**7)),
        *({"rms_eps": value} for value in (0, -1e-6, float("nan"), float("inf"), 1, None, True, "1e-6")),
        *({"max_positions": "4096"}, {"mlp_width": [11008]}, {"vocab_size": None}),
    ],
)
def test_an_impossible_decoder_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(values))} must be|heads do not divide"):
        DecoderConfig(**DECODER | values)


def test_heads_that_cannot_be_rotated_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be rotated"):
        DecoderConfig(**DECODER | {"width": 9, "num_heads": 3})


@pytest.mark.parametrize("values", [{"patch_size": 0}, {"image_size": "224"}, {"patch_size": 448}, {"depth": 10**7}])
def test_an_impossible_vision_tower_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be a whole number|do not fit"):
        ClipVisionConfig(**asdict(CLIP_LARGE) | values)
