"""The commands `verify`, `convert` and `plan`, run through the command line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from model.quantization import Quantization
from service.commands.main import app
from tests.model.test_quantization import LIBRARIES
from tests.model.text.sentencepiece_files import model_file
from tests.published import byte_pieces, golden, publish_video_chatgpt


def reeltalk(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def writable(source: Path, copy: Path) -> Path:
    """Copy a reference to a folder in which a test can change files."""
    shutil.copytree(source, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return writable(golden("videochat-open"), tmp_path / "reference")


@pytest.mark.parametrize("name", ["videochat-open", "videochat-e2e"])
def test_verify_passes_on_a_reference_and_writes_its_tensors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="decoding needs PyAV")
    done = reeltalk("verify", golden(name), "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.output
    assert "Nothing differs." in done.output
    expected, written = load_file(golden(name) / "expected.safetensors"), load_file(tmp_path / "out.safetensors")
    assert {key: (t.shape, t.dtype) for key, t in written.items()} == {
        key: (t.shape, t.dtype) for key, t in expected.items()
    }


@pytest.mark.parametrize("name", ["videochat-open", "videochat-e2e"])
def test_verify_without_a_reference_writes_the_same_tensors_and_compares_none(name: str, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="decoding needs PyAV")
    folder = tmp_path / "reference"
    shutil.copytree(golden(name), folder, ignore=shutil.ignore_patterns("expected.safetensors"))
    done = reeltalk("verify", folder, "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.output
    assert "Nothing was compared" in done.output
    expected, written = load_file(golden(name) / "expected.safetensors"), load_file(tmp_path / "out.safetensors")
    assert written.keys() == expected.keys()
    assert all(written[key].shape == tensor.shape for key, tensor in expected.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_verify_in_16_bits_passes_within_their_noise(dtype: str) -> None:
    assert reeltalk("verify", golden("videochat-open"), "--dtype", dtype).exit_code == 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("name", "family"), [("videochat-open", "videochat"), ("video-chatgpt-open", "video-chatgpt")])
def test_verify_of_a_quantised_model_judges_what_can_be_judged(name: str, family: str, kind: Quantization) -> None:
    pytest.importorskip(LIBRARIES[kind])
    done = reeltalk("verify", golden(name), "--family", family, "--quantize", kind)
    assert done.exit_code == 0, done.output
    (logits,) = [line for line in done.output.splitlines() if re.match(r"turn2\.greedy_logits|logits_first", line)]
    assert ("pass" if kind == "int8" else "shown") in logits
    assert f"{kind}: expected" in logits
    if kind == "int4":
        assert "because of the lower precision and were not judged.\nNothing else differs." in done.output


def failed_stages(done: Result) -> set[str]:
    return {line.split()[0] for line in done.output.splitlines() if " fail" in line or " absent" in line}


def test_verify_names_the_first_stage_with_an_error(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["visual_encoder.gmhra.1.dpe.weight"] *= 1.01
    save_file(weights, folder / "weights.safetensors")
    done = reeltalk("verify", folder)
    assert done.exit_code == 1
    failed = failed_stages(done)
    assert {"gmhra.1", "visual_encoder", "inputs_llama", "turn1.greedy_logits"} <= failed
    assert not {"blocks.3", "gmhra.0", "turn1.prompt"} & failed


def test_verify_finds_exchanged_queries_a_missing_stage_and_another_text(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["query_tokens"], weights["extra_query_tokens"] = (
        torch.cat((weights["extra_query_tokens"][:, :3], weights["query_tokens"][:, 3:]), dim=1),
        torch.cat((weights["query_tokens"][:, :3], weights["extra_query_tokens"][:, 3:]), dim=1),
    )
    save_file(weights, folder / "weights.safetensors")
    expected = load_file(folder / "expected.safetensors")
    save_file(expected | {"blocks.99": torch.ones(1)}, folder / "expected.safetensors")
    dialogue = folder / "dialogue.json"
    dialogue.write_text(dialogue.read_text().replace("What is she doing?\\n###", "What is he doing?\\n###"))
    done = reeltalk("verify", folder)
    assert done.exit_code == 1
    assert {"qformer.embeddings", "inputs_llama", "blocks.99", "turn1.prompt"} <= failed_stages(done)
    assert not {"visual_encoder", "ln_vision"} & failed_stages(done)


def test_verify_names_the_tensors_missing_from_the_reference(folder: Path) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    save_file({"video": inputs["video"]}, folder / "inputs.safetensors")
    done = reeltalk("verify", folder)
    assert (done.exit_code, "inputs.safetensors lacks video_other." in done.output) == (2, True)
    (folder / "dialogue.json").write_text("{}")
    done = reeltalk("verify", folder)
    assert (done.exit_code, "dialogue.json lacks questions." in done.output) == (2, True)


def test_convert_makes_a_folder_whose_digest_verify_confirms(tmp_path: Path) -> None:
    mine, reference = tmp_path / "mine", golden("videochat-open")
    done = reeltalk("convert", golden("videochat-open-ckpt"), "--to", mine, "--part", f"llama={reference / 'llama'}")
    assert done.exit_code == 0, done.output
    assert f"{mine} is complete" in done.output
    assert {t.dtype for t in load_file(mine / "model-00001-of-00001.safetensors").values()} == {torch.float16}
    assert reeltalk("verify", mine).exit_code == 0

    again = reeltalk("convert", reference, "--to", mine)
    assert again.exit_code == 2
    assert "exists already" in again.output

    (shard,) = mine.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    spoiled = reeltalk("verify", mine)
    assert spoiled.exit_code == 1
    assert failed_stages(spoiled) == {"digest"}


def test_a_converted_folder_with_a_reference_beside_it_is_verified_whole(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert reeltalk("convert", folder, "--to", mine, "--dtype", "float32").exit_code == 0
    for name in ("inputs.safetensors", "expected.safetensors", "dialogue.json"):
        shutil.copy(folder / name, mine)
    done = reeltalk("verify", mine)
    assert done.exit_code == 0, done.output
    assert {"digest", "turn2.beam3"} <= {line.split()[0] for line in done.output.splitlines()}


def test_video_chatgpt_s_parts_become_a_folder_whose_digest_verify_confirms(tmp_path: Path) -> None:
    published, mine = publish_video_chatgpt(tmp_path / "published"), tmp_path / "mine"
    done = reeltalk("convert", published, "--to", mine, "--family", "video-chatgpt")
    assert done.exit_code == 0, done.output
    assert {t.dtype for t in load_file(mine / "model-00001-of-00001.safetensors").values()} == {torch.float16}
    verified = reeltalk("verify", mine, "--family", "video-chatgpt")
    assert verified.exit_code == 0, verified.output
    assert "digest" in verified.output

    (published / "video_chatgpt-7B.bin").unlink()
    refused = reeltalk("convert", published, "--to", tmp_path / "other", "--family", "video-chatgpt")
    assert refused.exit_code == 2
    assert f"{published} has no video_chatgpt-7B.bin; download it, or name it with --part video=FILE." in refused.output


def test_a_converted_video_chatgpt_with_a_reference_beside_it_is_verified_whole(tmp_path: Path) -> None:
    folder, mine = writable(golden("video-chatgpt-open"), tmp_path / "reference"), tmp_path / "mine"
    (folder / "tokenizer.model").write_bytes(model_file(byte_pieces()))
    convert = ("convert", folder, "--to", mine, "--family", "video-chatgpt", "--dtype", "float32")
    assert reeltalk(*convert).exit_code == 0
    for name in ("inputs.safetensors", "expected.safetensors"):
        shutil.copy(folder / name, mine)
    done = reeltalk("verify", mine, "--family", "video-chatgpt", "--out", tmp_path / "out.safetensors")
    assert done.exit_code == 0, done.output
    assert {"digest", "greedy_ids"} <= {line.split()[0] for line in done.output.splitlines()}
    expected = load_file(folder / "expected.safetensors")
    assert {key: t.shape for key, t in load_file(tmp_path / "out.safetensors").items()} == {
        key: t.shape for key, t in expected.items()
    }


def test_plan_prints_modules_cache_and_batch() -> None:
    done = reeltalk("plan", "--size", "7b", "--budget-mib", "20000", "--tokens", "1170")
    assert done.exit_code == 0, done.output
    assert "15,325.6" in done.output
    assert "524,288 bytes a token" in done.output
    assert "Largest batch in 20,000 MiB: 7 conversations of 1,170 tokens" in done.output


def test_plan_of_video_chatgpt_prints_its_own_modules() -> None:
    done = reeltalk("plan", "--family", "video-chatgpt", "--size", "7b", "--quantize", "int4")
    assert done.exit_code == 0, done.output
    assert {"CLIP", "mm_projector", "LLaMA"} <= set(re.findall(r"\w+", done.output))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--size", "70b"], "videochat has no size '70b'; there are: 7b, 13b."),
        (["plan", "--family", "videochat9"], "There is no family 'videochat9'"),
        (["verify", "/nowhere"], "/nowhere/config.json does not exist"),
        (["verify", "/nowhere", "--device", "cuda:99"], "There is no device 'cuda:99' here."),
        (["convert", "--to", "/nowhere/new"], "Name the eva_vit_g.pth with --part vision=FILE"),
        (
            ["convert", "--to", "/nowhere/new", "--family", "video-chatgpt"],
            "with --part vision=FOLDER, or name a folder",
        ),
        (["plan", "--family", "video-chatgpt", "--size", "13b"], "video-chatgpt has no size '13b'; there are: 7b."),
        (["convert", "--to", "/nowhere/new", "--part", "llama"], "--part must be NAME=PATH"),
        (["pull", "no name"], "is not a repository name of the Hub"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(arguments: list[str], said: str) -> None:
    done = reeltalk(*arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_verify_refuses_a_place_for_its_tensors_before_it_computes_them(folder: Path, tmp_path: Path) -> None:
    for out, why in ((tmp_path / "absent" / "out.safetensors", "there is no folder"), (tmp_path, "it is a folder")):
        done = reeltalk("verify", folder, "--out", out)
        assert (done.exit_code, "stage" in done.output) == (2, False)
        assert why in done.output


def test_verify_refuses_a_damaged_clip_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="decoding needs PyAV")
    folder = writable(golden("videochat-e2e"), tmp_path / "reference")
    (folder / "clip.mp4").write_bytes(b"")
    done = reeltalk("verify", folder)
    assert (done.exit_code, "clip.mp4 cannot be used." in done.output) == (2, True)
    assert "Traceback" not in done.output


def test_convert_says_which_prompt_it_chose(tmp_path: Path) -> None:
    source = writable(golden("mobillama-e2e-ckpt") / "MobiLlama-05B", tmp_path / "mobillama-05b")
    done = reeltalk("convert", source, "--to", tmp_path / "mine", "--family", "mobillama")
    assert done.exit_code == 0, done.output
    assert "The prompt is plain: mobillama-05b is a base model, which continues a text." in done.output
