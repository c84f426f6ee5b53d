"""Finds the published clips and reference tensors; skips a test if they are not available."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.text.tokenizer import Piece
from tests.model.text.sentencepiece_files import llama_like, model_file

GOLDEN = Path(os.environ.get("REELTALK_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden"))


def golden(name: str) -> Path:
    """The folder of one set of reference tensors."""
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"no reference numbers at {folder}: set REELTALK_GOLDEN")
    return folder


def publish_video_chatgpt(folder: Path, *, llava_tokens: Sequence[str] = ()) -> Path:
    """Write the reference's weights in the layout of the published Video-ChatGPT, with unused keys in each part.

    Args:
        folder: the folder to write to.
        llava_tokens: the tokens that LLaVA added to its tokenizer; they get new embedding rows.
    """
    weights = load_file(golden("video-chatgpt-open") / "weights.safetensors")
    sizes = json.loads((golden("video-chatgpt-open") / "config.json").read_bytes())
    num_pieces = len(byte_pieces())
    new = torch.ones(len(llava_tokens), sizes["llm"]["hidden_size"])
    head, embeddings = weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    vision = {key: tensor for key, tensor in weights.items() if key.startswith("vision_model.")}
    vision |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(1)}
    vision |= {"vision_model.embeddings.position_ids": torch.arange(10), "visual_projection.weight": torch.ones(1, 1)}
    llama = {key: tensor for key, tensor in weights.items() if key not in vision} | {
        "lm_head.weight": torch.cat((head[:num_pieces], new)),
        "model.embed_tokens.weight": torch.cat((embeddings[:num_pieces] + 1, new)),
        "model.mm_projector.bias": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1),
    }
    video = {key: weights[key] for key in ("model.mm_projector.weight", "model.mm_projector.bias")}
    video["model.embed_tokens.weight"] = torch.cat((embeddings[:num_pieces], new, embeddings[num_pieces:]))
    for name in ("llava", "clip"):
        (folder / name).mkdir(parents=True)
    save_file(vision, folder / "clip" / "model.safetensors")
    torch.save(llama, folder / "llava" / "pytorch_model.bin")
    torch.save(video, folder / "video_chatgpt-7B.bin")
    vocab_size = num_pieces + len(llava_tokens)
    (folder / "clip" / "config.json").write_text(json.dumps({"vision_config": sizes["clip"]}))
    (folder / "llava" / "config.json").write_text(json.dumps(sizes["llm"] | {"vocab_size": vocab_size}))
    (folder / "llava" / "tokenizer.model").write_bytes(model_file(byte_pieces()))
    added = {name: num_pieces + place for place, name in enumerate(llava_tokens)} | {"</s>": 2}
    (folder / "llava" / "added_tokens.json").write_text(json.dumps(dict(sorted(added.items()))))
    return folder


def byte_pieces() -> list[Piece]:
    """The minimal vocabulary of the reference: special tokens and bytes."""
    return [piece for piece in llama_like() if piece.kind != "normal"]


def clip(name: str) -> Path:
    """The path of a clip of the original demo, in `videos` beside the reference tensors."""
    path = GOLDEN.parent / "videos" / name
    if not path.is_file():
        pytest.skip(f"no clip at {path}: set REELTALK_GOLDEN to a folder with `videos` beside it")
    return path
