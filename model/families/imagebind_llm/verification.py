"""ImageBind-LLM's verification stages, from pixels and sound to answers, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels and token ids, or `clip.mp4`, which is decoded first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from model.checkpoints.json_object import read_object
from model.families.imagebind_llm.network import NUM_CROPS, ImageBindLLMNetwork, in_windows, weighted_mean
from model.family import Family
from model.features import AUDIO, VIDEO
from model.sound import mel_spectrograms
from model.text.conversation import Conversation, Turn
from model.verification.answer_length import AnswerLengths
from model.verification.decoding import decode_greedily
from model.verification.inputs import INPUTS_FILE, embedded, read_dialogue, read_inputs, sampled_clip, token_rows
from model.verification.stage import Claim, Finding, Omission, Stage
from model.video.pixels import normalize
from model.weights import WeightsError

ROUNDED_IN_FLOAT32 = 1e-4
"""Tolerance of pixels and sound: the original computes places and spectra in float32."""
MAX_TOKENS = 16
"""The default of a folder that has no answer and does not set it."""
KNN = "needs the demo's index of nearest neighbours (kNN), which serving does not use"
MODALITIES = {"Video": VIDEO, "Audio": AUDIO}


def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    Raises:
        WeightsError: the folder lacks its inputs or its dialogue.
    """
    network = family.network
    assert isinstance(network, ImageBindLLMNetwork), "these stages are for ImageBind-LLM"
    if (folder / INPUTS_FILE).is_file():
        yield from _verify_pixels(family, network, folder)
    else:
        yield from _verify_clip(family, network, folder)


@contextmanager
def injected(llama: LlamaForCausalLM, added: Tensor) -> Iterator[None]:
    """Within the block, each layer adds its part of a condition [layers, heads, head_dim] to its attention."""
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, rows, own=own: (rows[0] + own.flatten(),))
        for layer, own in zip(llama.model.layers, added, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _verify_pixels(family: Family, network: ImageBindLLMNetwork, folder: Path) -> Iterator[Finding]:
    """Compute `imagebind_*`, `visual_query_*`, `logits` [1, L, V], `logits_cached_last` [1, V] and `greedy_ids`."""
    inputs = read_inputs(folder, "video", "image", "prompt_ids")
    scale = network.prefix_query
    video = network.see(inputs["video"].to(scale.device, scale.dtype)).mean(1)
    image = inputs["image"].to(scale.device, scale.dtype).unsqueeze(2)  # [1, 3, 1, S, S]
    image = network.see(image.expand(-1, -1, network.config.vision.num_frames, -1, -1).unsqueeze(1)).mean(1)
    query = network.query(weighted_mean([video], [1.0]))
    yield Stage(name="imagebind_video", tensor=video)
    yield Stage(name="imagebind_image", tensor=image)
    yield Stage(name="visual_query_video", tensor=query[None])
    yield Stage(name="visual_query_image", tensor=network.query(weighted_mean([image], [1.0]))[None])
    both = network.query(weighted_mean([image, video], [0.3, 0.9]))
    yield Stage(name="visual_query_video_image_weighted", tensor=both[None])
    yield Omission(name="visual_query_video_knn", reason=KNN)
    rows, llama = token_rows(family, inputs, "prompt_ids"), network.decoder
    ids = torch.tensor(rows, device=scale.device)
    lengths = AnswerLengths(folder, default=MAX_TOKENS, key="max_gen_len")
    # The reference lacks the token that ended it, so one more token tells whether ours ends there too.
    num_expected = lengths.of("greedy_ids")
    max_tokens = max(num_expected, lengths.stated or num_expected + 1)
    with injected(llama, network.injection(query)):
        yield Stage(name="logits", tensor=llama(ids, use_cache=False).logits, is_of_language_model=True)
        cache = llama(ids[:, :-1], use_cache=True).past_key_values
        last = llama(ids[:, -1:], past_key_values=cache).logits[:, -1]
        yield Stage(name="logits_cached_last", tensor=last, is_of_language_model=True)
        answer, _ = _answer(family, llama, rows[0], eos=_eos(family, folder), max_tokens=max_tokens)
    if answer[-1] == _eos(family, folder):
        answer = answer[:-1]
    elif lengths.stated is None:
        answer = answer[:num_expected]
    answer_ids = torch.tensor([answer], dtype=torch.long)
    yield Stage(name="greedy_ids", tensor=answer_ids, is_choice=True, is_of_language_model=True)


@torch.inference_mode()
def _verify_clip(family: Family, network: ImageBindLLMNetwork, folder: Path) -> Iterator[Finding]:
    """Compute the pixels and the sound of the clip, ImageBind's vectors, and the stages of every answer."""
    turns = read_dialogue(folder, "turns")["turns"]
    for turn in turns:
        if missing := [name for name in ("name", "weights", "instruction") if name not in turn]:
            raise WeightsError(f"A turn in {folder / 'dialogue.json'} lacks {missing[0]}.")
        if unknown := sorted(turn["weights"].keys() - MODALITIES.keys()):
            raise WeightsError(f"A turn in {folder / 'dialogue.json'} weighs {unknown[0]}, which is no modality.")
    sampled = sampled_clip(family, folder)
    inputs = sampled.inputs
    yield from _frame_claims(sampled.indices, folder)
    scale = network.prefix_query
    assert family.inputs is not None, "the model sees videos"
    pixels = torch.from_numpy(normalize(inputs.frames, family.inputs.pixels))[None]
    windows = in_windows(pixels, num_frames=network.config.vision.num_frames)  # [1, 15, 3, 2, S, S]
    yield from _pixel_stages(windows)
    seen = network.see(windows.to(scale.device, scale.dtype))[0]
    yield Stage(name="imagebind_vision_clips", tensor=seen)
    vectors = {VIDEO: seen.mean(0, keepdim=True)}
    if family.inputs.sound is not None and inputs.sound is not None:
        mel = torch.from_numpy(mel_spectrograms(inputs.sound, family.inputs.sound))[None]
        yield Stage(name="audio_mel_sub", tensor=mel[..., ::4, ::4], tolerance=ROUNDED_IN_FLOAT32)
        heard = network.hear(mel.to(scale.device, scale.dtype))[0]
        yield Stage(name="imagebind_audio_clips", tensor=heard, tolerance=ROUNDED_IN_FLOAT32)
        vectors[AUDIO] = heard.mean(0, keepdim=True)
    lengths = AnswerLengths(folder, default=MAX_TOKENS, key="max_gen_len")
    for turn in turns:
        yield from _turn(family, network, turn, vectors, lengths=lengths, eos=_eos(family, folder))


def _turn(
    family: Family,
    network: ImageBindLLMNetwork,
    turn: Mapping[str, Any],
    vectors: Mapping[str, Tensor],
    *,
    lengths: AnswerLengths,
    eos: int,
) -> Iterator[Finding]:
    """Compute the stages of one answer."""
    name, modality = turn["name"], turn["name"].removesuffix(".input")
    parts = {MODALITIES[key]: float(weight) for key, weight in turn["weights"].items()}
    if missing := sorted(parts.keys() - vectors.keys()):
        raise WeightsError(f"The clip has no {missing[0]}, which {name} needs.")
    tolerance = ROUNDED_IN_FLOAT32 if AUDIO in parts else 0.0
    scene = weighted_mean([vectors[part] for part in parts], list(parts.values()))
    query = network.query(scene)
    added = network.injection(query)
    if name == modality:
        layers = added[-network.config.num_query_layers :]
        for stage, tensor in (("scene", scene), ("visual_query", query), ("injection", layers)):
            yield Stage(name=f"{name}.{stage}", tensor=tensor, tolerance=tolerance)
    question = Turn(role="user", text=turn["instruction"])
    conversation = Conversation(clips=(), turns=(question,), system=turn.get("input") or "")
    ids = [token for piece in family.tokenize(conversation) if isinstance(piece, tuple) for token in piece]
    expected = turn.get("input_ids")
    yield Claim(
        name=f"{name}.prompt", got="".join(map(str, family.template.render(conversation))), expected=turn.get("prompt")
    )
    yield Claim(name=f"{name}.input_ids", got=ids, expected=expected)
    answer_name = f"{name}.generated_ids"
    max_tokens = lengths.of(answer_name, told=turn.get("generated_ids"), ends=((eos,),))
    with injected(network.decoder, added):
        # The reference's ids if there are any, so that a wrong prompt does not change later stages.
        answer, logits = _answer(family, network.decoder, expected or ids, eos=eos, max_tokens=max_tokens)
    num_told = len(answer) - 1 if answer[-1] == family.tokenizer.eos_id else len(answer)
    yield Stage(name=answer_name, tensor=torch.tensor(answer), is_choice=True, is_of_language_model=True)
    yield Stage(
        name=f"{name}.greedy_logits",
        tensor=logits,
        follows=answer_name,
        tolerance=tolerance,
        is_of_language_model=True,
    )
    text = family.tokenizer.decode(answer[:num_told]).strip()
    yield Claim(name=f"{name}.text", got=text, expected=turn.get("text"), is_choice=True)


def _answer(
    family: Family, llama: LlamaForCausalLM, ids: Sequence[int], *, eos: int, max_tokens: int
) -> tuple[list[int], Tensor]:
    """Decode as the original does: at most as many tokens as fit with the prompt into the model's context."""
    num_left = family.max_model_len - len(ids)
    if num_left < 1:
        raise WeightsError(
            f"The prompt has {len(ids)} tokens; with an answer it exceeds the context length of {family.max_model_len}."
        )
    return decode_greedily(llama, embedded(family, ids)[None], max_tokens=min(max_tokens, num_left), eos=eos)


def _eos(family: Family, folder: Path) -> int:
    """Return the id that ends an answer: the reference's, or the tokenizer's in a converted folder."""
    llama = read_object(folder / "config.json").get("llama")
    eos = llama.get("eos_id") if isinstance(llama, dict) else None
    return eos if isinstance(eos, int) else family.tokenizer.eos_id


def _frame_claims(frames: tuple[int, ...], folder: Path) -> Iterator[Finding]:
    path = folder / "clip.json"
    windows = read_object(path).get("video_clips") if path.is_file() else None
    expected = None if windows is None else [index for window in windows for index in window["frame_ids"]]
    yield Claim(name="clip.indices", got=list(frames), expected=expected)


def _pixel_stages(windows: Tensor) -> Iterator[Finding]:
    """Yield `video_stats` [15, mean | std, frame, channel], and a part of the pixels [1, 15, 3, 2, S, S]."""
    assert windows.shape[1] % NUM_CROPS == 0, "crops are inside windows"
    by_frame = windows[0].transpose(1, 2).flatten(3)  # [15, 2, 3, S * S]
    stats = torch.stack((by_frame.mean(-1), by_frame.std(-1)), dim=1)
    yield Stage(name="video_stats", tensor=stats, tolerance=ROUNDED_IN_FLOAT32)
    yield Stage(name="video_sub", tensor=windows[..., ::11, ::11], tolerance=ROUNDED_IN_FLOAT32)
