"""Finding families by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import families
from model.families import UnknownFamily, default_dtype, family_names, load_family
from model.quantization import Quantization
from tests.model.test_quantization import LIBRARIES


def test_every_file_of_the_folder_is_a_family_and_no_other_name_is() -> None:
    files = [path.stem.replace("_", "-") for path in Path(families.__file__).parent.glob("*.py")]
    assert family_names() == tuple(sorted(name for name in files if not name.startswith("-")))
    assert "videochat" in family_names()


@pytest.mark.parametrize("name", ["", "videochat2", "VideoChat", "../videochat", "videochat.load", "--init--"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownFamily, match=r"there are: .*videochat"):
        load_family(name)


def test_every_family_loads_in_its_tiny_sizes_under_its_name() -> None:
    for name in family_names():
        family = load_family(name)
        assert family.name == name
        assert family.num_video_tokens < family.max_model_len


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), ("cuda:1", torch.float16), (torch.device("mps"), torch.float16)]
)
def test_16_bits_are_the_default_on_a_gpu_and_32_on_the_cpu(device: torch.device | str, dtype: torch.dtype) -> None:
    assert default_dtype(device) == dtype


def test_an_unsaid_dtype_is_the_default_one() -> None:
    assert {load_family(name).dtype for name in family_names()} == {default_dtype("cpu")}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", family_names())
def test_every_family_can_be_quantised_and_nothing_but_its_language_model_changes(
    name: str, kind: Quantization
) -> None:
    pytest.importorskip(LIBRARIES[kind])
    exact, packed = load_family(name), load_family(name, quantization=kind)
    assert packed.checkpoint_digest == exact.checkpoint_digest
    assert packed.num_parameters == exact.num_parameters
    size = exact.pixel_spec.size
    pixel_values = torch.randn(1, 2, 3, size, size)
    features = exact.encode(pixel_values)
    assert torch.equal(packed.encode(pixel_values), features)
    assert torch.equal(packed.project(features[0]), exact.project(features[0]))
    ids = torch.tensor([[1, 40, 50]])
    with torch.no_grad():
        assert not torch.equal(packed.language_model(ids).logits, exact.language_model(ids).logits)


def test_listing_families_imports_none() -> None:
    code = "import sys; from model.families import family_names; family_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
