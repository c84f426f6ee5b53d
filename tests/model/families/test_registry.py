"""Finding families by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import families
from model.families import UnknownFamily, default_dtype, family_names, load_family


def test_every_folder_is_a_family_and_there_are_no_others() -> None:
    files = [path.parent.name.replace("_", "-") for path in Path(families.__file__).parent.glob("*/family.py")]
    assert family_names() == tuple(sorted(name for name in files if not name.startswith("-")))
    assert "videochat" in family_names()


@pytest.mark.parametrize("name", ["", "videochat2", "VideoChat", "../videochat", "videochat.load", "--init--"])
def test_the_error_for_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownFamily, match=r"Known families: .*videochat"):
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


def test_listing_families_imports_none() -> None:
    code = "import sys; from model.families import family_names; family_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
