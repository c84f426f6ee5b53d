"""Reading the tensors of TorchScript archives without running code in them."""

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from model.checkpoints.torchscript import MAX_DEPTH, MAX_PICKLE_BYTES, read_torchscript
from model.weights import WeightsError
from tests.model.checkpoints.torchscript_files import (
    module,
    name,
    number,
    tensor,
    text,
    tree,
    tuple_of,
    write_records,
    write_torchscript,
)
from tests.published import golden

SIX = torch.arange(6.0)
BYTES = struct.pack("<6f", *range(6))
WEIGHTS = {
    "scale": torch.tensor(7),
    "visual.proj": torch.arange(6.0).reshape(2, 3).T,
    "visual.conv.weight": torch.ones(2, 3, 1, 1, dtype=torch.float16),
    "visual.layers.0.bias": torch.arange(3.0),
    "visual.layers.1.bias": torch.arange(3.0) - 1,
    "empty": torch.empty(0),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ViT-L-14.pt"


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_torchscript(path)
    return str(refused.value)


def test_every_parameter_and_buffer_is_read_by_its_full_name(path: Path) -> None:
    write_torchscript(path, WEIGHTS)
    read = read_torchscript(path)
    assert read.keys() == WEIGHTS.keys()
    for key, expected in WEIGHTS.items():
        assert read[key].dtype == expected.dtype
        assert torch.equal(read[key], expected)


def test_an_archive_like_openai_s_holds_what_the_folder_of_the_same_model_does() -> None:
    archive = golden("vtimellm-e2e-ckpt") / "clip" / "ViT-L-14.pt"
    read = read_torchscript(archive)
    folder = torch.load(golden("vtimellm-e2e-ckpt") / "clip-vit-large-patch14" / "pytorch_model.bin")
    assert torch.equal(read["visual.proj"].T.float(), folder["visual_projection.weight"])
    assert torch.equal(read["visual.class_embedding"], folder["vision_model.embeddings.class_embedding"])


def test_an_archive_of_an_early_torch_has_no_byte_order_and_compressed_source(path: Path) -> None:
    write_torchscript(path, WEIGHTS)
    with zipfile.ZipFile(path) as archive:
        records = {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in records.items():
            if entry != "byteorder":
                kind = zipfile.ZIP_DEFLATED if entry.startswith("code/") else zipfile.ZIP_STORED
                archive.writestr(f"model/{entry}", content, kind)
    assert read_torchscript(path).keys() == WEIGHTS.keys()


def test_tensors_may_share_a_storage_and_overlap_in_it(path: Path) -> None:
    root = module(a=tensor((2, 3), (3, 1)), b=tensor((2, 2), (2, 1), offset=2), c=tensor((), (), offset=5))
    write_records(path, {"data.pkl": tree(root), "data/0": BYTES})
    read = read_torchscript(path)
    assert torch.equal(read["a"], SIX.reshape(2, 3))
    assert torch.equal(read["b"], SIX[2:].reshape(2, 2))
    assert read["c"] == 5


@pytest.mark.parametrize(
    "root",
    [
        name("posix", "mkdir") + tuple_of(text("touched")) + pickle.REDUCE,
        name("builtins", "eval") + tuple_of(text("1")) + pickle.REDUCE,
        name("torch", "load") + tuple_of(text("x")) + pickle.REDUCE,
        name("torch.jit", "load") + tuple_of(text("x")) + pickle.REDUCE,
        name("torch_", "FloatStorage"),
        name("__torch__x", "Held"),
        module(a=name("os", "system")),
    ],
)
def test_a_name_other_than_a_module_s_or_a_tensor_s_is_refused(
    path: Path, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    write_records(path, {"data.pkl": tree(root), "data/0": BYTES})
    assert refusal(path).startswith("ViT-L-14.pt holds Python objects besides modules and tensors.")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "root",
    [
        pickle.INT + b"1\n",
        pickle.STACK_GLOBAL,
        pickle.BINBYTES + struct.pack("<I", 1) + b"x",
        pickle.LONG4 + struct.pack("<i", 1) + b"x",
        module(a=pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**31)),
    ],
)
def test_an_opcode_that_torchscript_does_not_write_is_refused(path: Path, root: bytes) -> None:
    write_records(path, {"data.pkl": tree(root)})
    assert "holds the opcode" in refusal(path)


@pytest.mark.parametrize(
    "described",
    [
        tensor((3, 3), (3, 1)),
        tensor((2**30, 2**30), (0, 0)),
        tensor((2, 3), (30, 1)),
        tensor((2, 3), (3, 1), offset=1),
        tensor((2, 3), (3, -1)),
        tensor((-2, -3), (3, 1)),
        tensor((2, 3), (3, 1), offset=-1),
        tensor((6,), (1, 1)),
        tensor((2, 3), (3, 1), num_values=7),
        tensor((2, 3), (3, 1), num_values=2**30),
        tensor((2, 3), (3, 1), record="1"),
        tensor((2, 3), (3, 1), record="../0"),
        tensor((2, 3), (3, 1), storage="DoubleStorage"),
        name("torch._utils", "_rebuild_tensor_v2") + tuple_of(pickle.NONE, number(0)) + pickle.REDUCE,
        name("torch._utils", "_rebuild_tensor_v2")
        + tuple_of(pickle.NONE, number(0), tuple_of(), tuple_of())
        + pickle.REDUCE,
        tuple_of(text("storage"), text("x")) + pickle.BINPERSID,
        number(0) + pickle.BINPERSID,
    ],
)
def test_an_impossible_tensor_is_damage(path: Path, described: bytes) -> None:
    write_records(path, {"data.pkl": tree(module(a=described)), "data/0": BYTES})
    assert refusal(path).startswith("ViT-L-14.pt is damaged or truncated")


@pytest.mark.parametrize(
    "named", [("__torch__", "Held"), ("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")]
)
def test_a_pickle_cannot_set_attributes_of_what_it_names(path: Path, named: tuple[str, str]) -> None:
    attributes = pickle.EMPTY_DICT + pickle.MARK + text("__doc__") + text("changed") + pickle.SETITEMS
    for state in (attributes, tuple_of(pickle.NONE, attributes)):
        write_records(path, {"data.pkl": tree(name(*named) + state + pickle.BUILD)})
        assert refusal(path).startswith("ViT-L-14.pt is damaged or truncated")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (pickle.NONE, "something other than a module"),
        (tensor((2, 3), (3, 1)), "something other than a module"),
        (module(a=pickle.EMPTY_LIST), "an attribute a that is no tensor"),
        (module(a=module(b=name("torch", "HalfStorage"))), "an attribute a.b that is no tensor"),
    ],
)
def test_anything_but_a_tree_of_modules_with_tensors_is_refused(path: Path, root: bytes, said: str) -> None:
    write_records(path, {"data.pkl": tree(root), "data/0": BYTES})
    assert f"holds {said}" in refusal(path)


def test_a_module_that_holds_itself_is_refused(path: Path) -> None:
    held = name("__torch__", "Held") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.BINPUT + b"\x00"
    state = pickle.EMPTY_DICT + pickle.MARK + text("a") + pickle.BINGET + b"\x00" + pickle.SETITEMS
    write_records(path, {"data.pkl": tree(held + state + pickle.BUILD)})
    assert "too many modules" in refusal(path)


def test_modules_that_hold_the_next_one_twice_are_refused(path: Path) -> None:
    root = module()
    for _ in range(MAX_DEPTH - 2):
        root = root.removesuffix(pickle.BUILD) + pickle.BUILD
        again = root + pickle.BINPUT + b"\x00"
        state = pickle.EMPTY_DICT + pickle.MARK + text("a") + again + text("b") + pickle.BINGET + b"\x00"
        root = name("__torch__", "Held") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + state + pickle.SETITEMS + pickle.BUILD
    write_records(path, {"data.pkl": tree(root)})
    assert "too many modules" in refusal(path)


def test_a_file_that_would_expand_is_refused(path: Path) -> None:
    root = tree(module(a=tensor((1 << 20,), (1,), num_values=1 << 20)))
    write_records(path, {"data.pkl": root, "data/0": bytes(4 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert "holds compressed tensors" in refusal(path)


def test_records_that_share_bytes_are_refused(path: Path) -> None:
    write_records(path, {"data.pkl": tree(module()), "data/0": bytes(1 << 16), "data/1": bytes(1 << 16)})
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("model/data/0")
        for number_of_copy in range(2, 6):
            copy = zipfile.ZipInfo(f"model/data/{number_of_copy}")
            copy.file_size = copy.compress_size = first.file_size
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True  # type: ignore[attr-defined]
    assert "holds records that overlap" in refusal(path)


def test_a_description_that_is_too_long_is_refused(path: Path) -> None:
    write_records(path, {"data.pkl": bytes(MAX_PICKLE_BYTES + 1)})
    assert "holds a description of more than" in refusal(path)


def test_tensors_of_a_big_endian_machine_are_refused(path: Path) -> None:
    write_records(path, {"data.pkl": tree(module()), "byteorder": b"big"})
    assert "big-endian" in refusal(path)


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    torch.save(WEIGHTS, path)
    assert refusal(path) == "ViT-L-14.pt is not a TorchScript archive."


@pytest.mark.parametrize("kept", [0, 3, 1000, -1, -30])
def test_a_truncated_archive_should_be_downloaded_again(path: Path, kept: int) -> None:
    write_torchscript(path, WEIGHTS)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path).endswith("Download it again.")


@pytest.mark.parametrize("part", ["data/0", "data.pkl"])
def test_a_changed_byte_is_noticed(path: Path, part: str) -> None:
    write_torchscript(path, WEIGHTS)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.partition("/")[2] == part)
        record = archive.read(entry)
    content[content.index(record, entry.header_offset) + len(record) // 2] ^= 4
    path.write_bytes(content)
    assert refusal(path).startswith("ViT-L-14.pt is damaged or truncated")


def test_an_absent_archive_should_be_downloaded(path: Path) -> None:
    assert "does not exist. Download it" in refusal(path)
