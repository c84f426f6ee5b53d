"""Reading LoRA adapters, and adding them to weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoints.lora import Adapter, build_adapter, fold, lora_sizes, read_adapter
from model.weights import WeightsError

OPTIONS: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "r": 2,
    "lora_alpha": 6,
    "target_modules": ["q_proj", "up_proj"],
    "lora_dropout": 0.05,
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "vicuna",
    "inference_mode": True,
    "init_lora_weights": True,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "use_dora": False,
}
LAYERS = tuple(f"model.layers.{number}.{name}" for number in range(2) for name in ("self_attn.q_proj", "mlp.up_proj"))
SHAPES = {f"{layer}.weight": (5, 4) if "up" in layer else (4, 4) for layer in LAYERS}


def drawn(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(seed: int = 0) -> dict[str, Tensor]:
    """The content of `adapter_model.bin`."""
    tensors = {}
    for number, (weight, (num_out, num_in)) in enumerate(SHAPES.items()):
        layer = f"base_model.model.{weight.removesuffix('.weight')}"
        tensors[f"{layer}.lora_A.weight"] = drawn(seed + number, (2, num_in)).half()
        tensors[f"{layer}.lora_B.weight"] = drawn(seed + number + 50, (num_out, 2)).half()
    return tensors


def weights() -> dict[str, Tensor]:
    drawn_weights = {name: drawn(number + 200, shape) for number, (name, shape) in enumerate(SHAPES.items())}
    return {**drawn_weights, "model.layers.0.self_attn.k_proj.weight": torch.ones(4, 4)}


def adapter(seed: int = 0, **options: object) -> Adapter:
    return build_adapter(factors(seed), lora_sizes(OPTIONS | options, origin="adapter_config.json"), name="stage2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published adapter."""
    folder = tmp_path / "stage2"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(OPTIONS))
    torch.save(factors(), folder / "adapter_model.bin")
    return folder


def test_an_adapter_in_peft_s_layout_is_added_to_the_weights_it_changes(folder: Path) -> None:
    base, read = weights(), factors()
    folded = fold(base, [read_adapter(folder)], dtype=None)
    assert folded.keys() == base.keys()
    assert folded["model.layers.0.self_attn.k_proj.weight"] is base["model.layers.0.self_attn.k_proj.weight"]
    for layer in LAYERS:
        down, up = (read[f"base_model.model.{layer}.lora_{half}.weight"].double() for half in "AB")
        expected = base[f"{layer}.weight"].double() + 3 * up @ down
        torch.testing.assert_close(folded[f"{layer}.weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_two_adapters_are_added_in_float32_and_rounded_once() -> None:
    base = {name: tensor.half() for name, tensor in weights().items()}
    exact = fold({name: tensor.float() for name, tensor in base.items()}, [adapter(), adapter(9)], dtype=None)
    rounded = fold(base, [adapter(), adapter(9)], dtype=None)
    wider = fold(base, [adapter(), adapter(9)], dtype=torch.float32)
    for name in SHAPES:
        assert rounded[name].dtype == torch.float16
        assert torch.equal(rounded[name], exact[name].half())
        assert torch.equal(wider[name], exact[name])


def test_the_order_of_adapters_changes_their_sum_by_its_rounding_alone() -> None:
    one, other = (fold(weights(), order, dtype=None) for order in ([adapter(), adapter(9)], [adapter(9), adapter()]))
    assert all((one[name] - other[name]).abs().max() <= 1e-5 for name in SHAPES)


def test_adapters_are_compared_by_their_values() -> None:
    assert adapter().equals(adapter())
    assert not adapter().equals(adapter(9))
    assert not adapter().equals(adapter(lora_alpha=12))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peft_type": "IA3"}, "sets peft_type to 'IA3'; only 'LORA' is supported"),
        ({"bias": "all"}, "sets bias to 'all'; only 'none' is supported"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out to True, which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save to"),
        ({"layers_to_transform": [1]}, "sets layers_to_transform to"),
        ({"rank_pattern": {"q_proj": 4}}, "sets rank_pattern to"),
        ({"use_dora": True}, "sets use_dora to True"),
        ({"use_rslora": True}, "sets use_rslora to True"),
        ({"new_option": 3}, "sets new_option to 3, which is not supported"),
        ({"r": 0}, "impossible r"),
        ({"r": True}, "impossible r"),
        ({"r": "2"}, "impossible r"),
        ({"lora_alpha": -1}, "impossible r"),
        ({"lora_alpha": float("inf")}, "impossible r"),
        ({"lora_alpha": None}, "impossible r"),
        ({"target_modules": "q_proj"}, "impossible r"),
        ({"target_modules": [1]}, "impossible r"),
    ],
)
def test_an_option_that_is_unknown_or_not_supported_is_refused(
    folder: Path, options: dict[str, object], said: str
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(OPTIONS | options))
    with pytest.raises(WeightsError, match=rf"adapter_config\.json of stage2 .*{said}"):
        read_adapter(folder)


@pytest.mark.parametrize("option", ["r", "lora_alpha", "target_modules", "peft_type", "bias"])
def test_an_option_that_is_missing_is_named(folder: Path, option: str) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in OPTIONS.items() if k != option}))
    with pytest.raises(WeightsError, match=f"lacks {option}; it does not describe a LoRA"):
        read_adapter(folder)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"base_model.model.lm_head.weight": torch.ones(1)}, "does not account for: base_model.model.lm_head.weight"),
        ({f"{FIRST}.weight": torch.ones(4, 4)}, "does not account for"),
        ({f"{FIRST.replace('q_proj', 'k_proj')}.lora_A.weight": torch.ones(2, 4)}, "does not account for"),
        ({f"{FIRST}.lora_A.weight": None}, "has only one of the two factors for model.layers.0.self_attn.q_proj"),
        ({f"{FIRST}.lora_A.weight": torch.ones(3, 4)}, "not of rank 2"),
        ({f"{FIRST}.lora_B.weight": torch.ones(4, 3)}, "not of rank 2"),
        ({f"{FIRST}.lora_B.weight": torch.ones(4)}, "not of rank 2"),
        ({f"{FIRST}.lora_B.weight": torch.ones(5, 2)}, r"changes model.layers.0.self_attn.q_proj.weight \[5, 4\]"),
        ({f"{FIRST}.lora_A.weight": None, f"{FIRST}.lora_B.weight": None}, "lacks the factors for model.layers.0"),
    ],
)
def test_an_adapter_that_does_not_fit_its_options_or_the_model_is_refused(
    folder: Path, changed: dict[str, Tensor | None], said: str
) -> None:
    content = {key: value for key, value in (factors() | changed).items() if value is not None}
    torch.save(content, folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match=rf"stage2/adapter_model\.bin .*{said}"):
        fold(weights(), [read_adapter(folder)], dtype=None)


def test_an_adapter_without_one_of_its_targets_is_refused(folder: Path) -> None:
    torch.save({key: value for key, value in factors().items() if "up_proj" not in key}, folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"lacks the factors for up_proj, which its adapter_config\.json names"):
        read_adapter(folder)


def test_an_adapter_of_a_deeper_model_is_refused() -> None:
    shallow = {name: tensor for name, tensor in weights().items() if ".1." not in name}
    with pytest.raises(WeightsError, match=r"changes model\.layers\.1\.\S+ \[\d, 4\], which does not exist there"):
        fold(shallow, [adapter()], dtype=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_factor_that_is_not_finite_is_refused_by_name(folder: Path, value: float) -> None:
    tensors = factors()
    key = f"base_model.model.{LAYERS[1]}.lora_B.weight"
    tensors[key][0, 0] = value
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(
        WeightsError, match=f"stage2/adapter_model.bin is damaged: {key} has values that are not finite"
    ):
        read_adapter(folder)


def test_a_sum_that_does_not_fit_is_refused_by_name() -> None:
    base = {name: tensor.half() for name, tensor in weights().items()}
    with pytest.raises(WeightsError, match="of stage2 has values that do not fit into float16"):
        fold(base, [adapter(lora_alpha=1e6)], dtype=None)
