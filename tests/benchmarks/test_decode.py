"""The decode benchmark counts the right weights and prints a line of JSON."""

import json
import sys

import pytest
import torch

from benchmarks import decode

CPU = torch.device("cpu")


def test_every_step_reads_all_weights_except_the_embedding_table() -> None:
    language_model = decode.build(depth=2, width=128, device=CPU, dtype=torch.bfloat16)
    layer = 4 * 128 * 128 + 3 * 128 * 344 + 2 * 128
    assert decode.streamed_bytes(language_model) == 2 * (2 * layer + 128 + 128 * 32_000)


def test_the_benchmark_reports_each_number_of_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"depth": 1, "width": 128, "tokens": 4, "prompt": 40, "copy-mib": 1}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["decode", "--device", "cpu", "--streams", "1", "3", *options])
    assert decode.main() == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["benchmark"] == "decode"
    for name in ("tokens_per_s_1", "tokens_per_s_3", "tflops_prefill", "bandwidth_gb_s", "share_of_bandwidth"):
        assert results[name] > 0, name
