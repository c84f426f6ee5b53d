"""Reading pickled weights without running code in them."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch

from model.checkpoints.torch_file import read_torch_file
from model.weights import WeightsError
from tests.model.checkpoints.torchscript_files import write_torchscript

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Touching:
    """Creates a file when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, (str(self.path),)


def assert_read(path: Path) -> None:
    read = read_torch_file(path)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.parametrize("content", [WEIGHTS, {"model": WEIGHTS, "epoch": 3, "optimizer": {"state": [1, 2.0]}}])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_state_dict_is_found_flat_and_under_model(tmp_path: Path, content: dict[str, object], is_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert_read(path)


def test_the_settings_of_a_training_script_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EasyDict(dict[str, object]):
        """Stores its items as attributes too, like the original."""

        def __init__(self, **items: object) -> None:
            super().__init__(items)
            self.__dict__.update(items)

    EasyDict.__module__, EasyDict.__qualname__ = "utils.easydict", "EasyDict"
    module = types.ModuleType("utils.easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    path = tmp_path / "videochat.pth"
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "utils", types.ModuleType("utils"))
        patched.setitem(sys.modules, "utils.easydict", module)
        torch.save({"model": WEIGHTS, "config": EasyDict(model=EasyDict(depth=3), paths=["a"])}, path)
    assert_read(path)


def test_an_object_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    path, touched = tmp_path / "evil.pth", tmp_path / "touched"
    torch.save({"model": WEIGHTS, "config": Touching(touched)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth holds Python objects .* get it from its authors"):
        read_torch_file(path)
    assert not touched.exists()


@pytest.mark.parametrize("kept", [0, 3, 100, 500, -1])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_truncated_file_should_be_downloaded_again(tmp_path: Path, kept: int, is_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged or truncated .* Download it again"):
        read_torch_file(path)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["a.weight"].numpy().tobytes()) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged or truncated"):
        read_torch_file(path)


def test_an_absent_file_should_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"eva_vit_g\.pth does not exist\. Download it"):
        read_torch_file(tmp_path / "eva_vit_g.pth")


@pytest.mark.parametrize("content", [[1], {}, {"model": {}}, {"weight": 3}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="is not a file of weights"):
        read_torch_file(tmp_path / "weights.pth")


def test_an_empty_state_dict_is_accepted_where_one_may_be(tmp_path: Path) -> None:
    path = tmp_path / "non_lora_trainables.bin"
    torch.save({}, path)
    assert read_torch_file(path, may_be_empty=True) == {}
    torch.save([], path)
    with pytest.raises(WeightsError, match="is not a file of weights"):
        read_torch_file(path, may_be_empty=True)


def test_a_torchscript_archive_is_refused_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    write_torchscript(path, WEIGHTS)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a TorchScript archive"):
        read_torch_file(path)


def test_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"large": torch.zeros(1 << 20)}, path)
    read = read_torch_file(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del read
