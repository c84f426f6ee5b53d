"""Measure seconds and memory of each phase from a model's files to the first token; prints one line of JSON.

`published_size` runs it in a separate process for each setting, so that only that model's memory counts.
"""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.phases import Phases, peak_resident

if TYPE_CHECKING:
    import torch

    from model.family import Family
    from model.quantization import Quantization

MAX_MODEL_LEN = 512
"""The size of the KV cache in tokens, 0.5 MiB each in 16 bits: enough for the beginning of one conversation."""
QUESTION = "What happens in this video, and in which order?"


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    print(json.dumps(measure(arguments.folder, arguments.device, arguments.dtype, arguments.quantize)))


def measure(folder: Path, device: str, dtype: str, quantization: "Quantization | None") -> dict[str, Any]:
    """Measure from the files in `folder` to the first token about a clip of random frames.

    Raises:
        WeightsError: the folder is damaged, or the library for the quantization is not installed.
    """
    phases = Phases()
    with phases.phase("import"):
        import torch

        from model.families import load_family

        for name in ("model.engine.engine", "model.families.videochat.family"):
            importlib.import_module(name)
    with phases.phase("load"):
        family = load_family(
            "videochat", checkpoint=folder, device=device, dtype=getattr(torch, dtype), quantization=quantization
        )
        _wait(device)
    inputs = family.inputs
    assert inputs is not None, "VideoChat sees videos"
    size, count = inputs.pixels.size, inputs.frames.count
    pixel_values = torch.randn(1, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    with phases.phase("encode"):
        features = family.encode(pixel_values)["video"]
        _wait(device)
    with phases.phase("project"):
        video_tokens = family.project("video", features)
        _wait(device)
    with phases.phase("first token"):
        num_prompt_tokens, token_id = first_token(family, features[0], num_frames=count)
    seen = [phase.resident for phase in phases.finished]  # the system's peak lags behind by some pages
    return {
        "phases": [asdict(phase) for phase in phases.finished],
        "peak": torch.cuda.max_memory_allocated() if device == "cuda" else max(peak_resident(), *seen),
        "shapes": [list(tensor.shape) for tensor in (pixel_values, features, video_tokens)],
        "num_prompt_tokens": num_prompt_tokens,
        "token_id": token_id,
    }


def first_token(family: "Family", features: "torch.Tensor", *, num_frames: int) -> tuple[int, int]:
    """Generate one token about a clip with the given features [queries, width].

    Returns:
        The number of tokens of the prompt, and the id of the token.
    """
    from model.engine.config import EngineConfig
    from model.engine.engine import Engine
    from model.engine.sampling_params import SamplingParams
    from model.family import EncodedClip, build_prompt
    from model.text.conversation import Clip, Conversation, Turn

    clip = Clip(frame_indices=tuple(range(18, 18 + 37 * num_frames, 37)), fps=30.0)
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text=QUESTION),))
    prompt = build_prompt(family, conversation, [EncodedClip({"video": features}, "clip")])
    config = EngineConfig(max_num_seqs=1, max_model_len=MAX_MODEL_LEN)
    engine = Engine(family.language_model, family.tokenizer, config)
    engine.add_request("first", prompt, SamplingParams(max_tokens=1))
    (output,) = engine.step()
    assert output.finish_reason != "error", "the logits are finite"
    return output.num_prompt_tokens, output.token_ids[0]


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_token")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--quantize", choices=("int8", "int4"))
    return parser


if __name__ == "__main__":
    main()
