"""The published-size benchmark, run with small sizes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import published_size
from benchmarks.first_token import measure
from benchmarks.phases import Phases, peak_resident
from benchmarks.published_size import is_written, random_tensors, write
from model.checkpoints.folder import read_record, recompute_digest
from model.families.videochat.network import QFormerConfig, VideoChatConfig
from model.families.videochat.vision import VisionConfig
from model.networks.llama import DecoderConfig

CONFIG = VideoChatConfig(
    num_frames=3,
    vision=VisionConfig(image_size=12, patch_size=4, width=40, depth=3, num_heads=4, num_global_blocks=2),
    qformer=QFormerConfig(width=16, depth=2, num_heads=2, mlp_width=32, num_queries=2, num_extra_queries=3),
    decoder=DecoderConfig(vocab_size=1200, width=128, depth=2, num_heads=2, mlp_width=256),
)
MIB = 1024**2


def test_a_folder_as_convert_writes_it_is_made_of_random_weights(tmp_path: Path) -> None:
    write(tmp_path / "model", CONFIG, dtype=torch.bfloat16)
    record = read_record(tmp_path / "model")
    assert record is not None and recompute_digest(tmp_path / "model") == record["digest"]
    assert is_written(tmp_path / "model", CONFIG)
    assert not is_written(tmp_path / "elsewhere", CONFIG)
    with pytest.raises(SystemExit, match="contains a model of other sizes"):
        is_written(tmp_path / "model", published_size.cut(CONFIG, depth=1))


def test_no_parameter_is_zero_and_no_two_layers_are_alike() -> None:
    tensors = random_tensors(CONFIG)
    assert all(bool(tensor.all()) for tensor in tensors.values())
    first, second = (tensors[f"llama_model.model.layers.{at}.self_attn.q_proj.weight"] for at in (0, 1))
    assert not torch.equal(first, second)


def test_every_phase_from_file_to_first_token_is_measured(tmp_path: Path) -> None:
    write(tmp_path / "model", CONFIG, dtype=torch.bfloat16)
    measured = measure(tmp_path / "model", "cpu", "bfloat16", None)
    assert measured["shapes"] == [[1, 3, 3, 12, 12], [1, 5, 16], [1, 5, 128]]
    assert [phase["name"] for phase in measured["phases"]] == ["import", "load", "encode", "project", "first token"]
    assert measured["num_prompt_tokens"] > 5 and 0 <= measured["token_id"] < 1200


def test_a_short_peak_of_memory_in_a_phase_is_measured() -> None:
    phases = Phases()
    with phases.phase("idle"):
        pass
    with phases.phase("busy"):
        taken = torch.ones(64 * MIB, dtype=torch.uint8)
        assert bool(taken.all())
        del taken
    idle, busy = phases.finished
    assert busy.seconds > 0 and busy.private >= idle.private
    assert busy.resident > 64 * MIB and peak_resident() > 64 * MIB


def test_the_benchmark_runs_in_separate_processes_and_ends_with_a_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published_size, "PUBLISHED_7B", CONFIG)
    folder = tmp_path / "model"
    monkeypatch.setattr(sys, "argv", ["published-size", str(folder), "--device=cpu", "--settings=16-bit", "--remove"])
    assert published_size.main() == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["16-bit"]["peak"] > 50 * MIB and results["decoder_depth"] == 2
    assert not folder.exists()
