"""VideoChat's stages, from pixels to an answer in two turns, under the names of its reference tensors.

A folder has either `inputs.safetensors`, with pixels, or `clip.mp4`, from which frames are decoded first.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoints.json_object import read_object
from model.engine.sampling_params import SamplingParams
from model.families.videochat.network import VideoChatNetwork
from model.family import Family, tokenize_segments
from model.text.conversation import Clip, Conversation, Part, Turn, VideoSlot
from model.verification.decoding import decode_greedily, sampling_probabilities, search_beams
from model.verification.inputs import read_dialogue, read_inputs
from model.verification.stage import Claim, Finding, Stage, recorded
from model.video.pixels import normalize, resize
from model.weights import WeightsError

TEMPERATURES = (0.7, 1.0, 2.0)
NUM_SAMPLED_STEPS = 3
NUM_BEAMS = 3
MAX_TOKENS = 20
"""Where a folder does not say how many."""
BOS, EOS = 1, 2
STOP_IDS = ((835,), (2277, 29937))
"""The ids of `###` in LLaMA's vocabulary, at which the original stops whatever the tokenizer."""


def videochat_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Every stage of the model on the inputs in a folder.

    Raises:
        WeightsError: the folder lacks its inputs or its dialogue.
    """
    network = family.network
    assert isinstance(network, VideoChatNetwork), "the stages are VideoChat's"
    dialogue = read_dialogue(folder, "questions")
    if (folder / "inputs.safetensors").is_file():
        dialogue, inputs = read_dialogue(folder, "video_message"), read_inputs(folder, "video", "video_other", "image")
        outputs = encoder_stages(network, inputs["video"])
        yield from _named(outputs)
        yield from _ends("batch.", network, torch.cat((inputs["video_other"], inputs["video"])))
        yield from _ends("image.", network, inputs["image"])
        clip = _clip_of(dialogue["video_message"])
    else:
        clip, pixel_values = _decoded(family, folder / "clip.mp4")
        yield from _clip_findings(clip, pixel_values, folder / "clip.json")
        outputs = encoder_stages(network, pixel_values)
        # The references of clips hold no stage of single frames: one frame's trunk is checked by the other kind.
        yield from (stage for stage in _named(outputs) if not re.match(r"patch_embed|blocks\.|ln_vision", stage.name))
    yield from _dialogue(family, read_object(folder / "config.json"), dialogue, clip, outputs["inputs_llama"][0])


def encoder_stages(network: VideoChatNetwork, pixel_values: Tensor) -> dict[str, Tensor]:
    """Every stage from pixels [B, T, 3, H, W] to video tokens, in order and in the original's layout."""
    weight = network.llama_proj.weight
    num_clips, num_frames = pixel_values.shape[:2]
    with torch.inference_mode(), recorded(_modules(network)) as outputs:
        features = network.encode(pixel_values.to(weight.device, weight.dtype))
        outputs["query_output.last_hidden_state"] = features
        outputs["inputs_llama"] = network.project(features)
    patches = outputs["patch_embed"]
    patches = patches.reshape(num_clips, num_frames, *patches.shape[1:])
    outputs["patch_embed"] = patches.transpose(1, 2)  # [B, C, T, h, w], as a convolution over time gives it
    for name in outputs:
        if name.startswith("gmhra."):
            outputs[name] = outputs[name].transpose(0, 1)  # [1, B, C]
    return outputs


def _modules(network: VideoChatNetwork) -> dict[str, nn.Module]:
    encoder = network.visual_encoder
    return {
        "patch_embed": encoder.patch_embed,
        **{f"blocks.{number}": block for number, block in enumerate(encoder.blocks)},
        **{f"gmhra.{number}": block for number, block in enumerate(encoder.gmhra)},
        "visual_encoder": encoder,
        "ln_vision": network.ln_vision,
        "qformer.embeddings": network.qformer.layernorm,
        **{f"qformer.layer.{number}": layer for number, layer in enumerate(network.qformer.encoder.layer)},
    }


def _named(outputs: Mapping[str, Tensor]) -> Iterator[Stage]:
    return (Stage(name=name, tensor=tensor) for name, tensor in outputs.items())


def _ends(prefix: str, network: VideoChatNetwork, pixel_values: Tensor) -> Iterator[Stage]:
    outputs = encoder_stages(network, pixel_values)
    for name in ("visual_encoder", "inputs_llama"):
        yield Stage(name=prefix + name, tensor=outputs[name])


def _dialogue(
    family: Family, config: Mapping[str, Any], dialogue: Mapping[str, Any], clip: Clip, video: Tensor
) -> Iterator[Finding]:
    """Turns of a conversation about video tokens [N, hidden]."""
    told = dialogue.get("turns", [])
    max_tokens = config.get("generation", {}).get("max_new_tokens", MAX_TOKENS)
    turns: list[Turn] = []
    for number, question in enumerate(dialogue["questions"], start=1):
        turn = told[number - 1] if number <= len(told) else {}
        turns.append(Turn(role="user", text=question))
        segments = family.template.render(
            Conversation(clips=(clip,), turns=tuple(turns), system=dialogue.get("system", ""))
        )
        yield Claim(name=f"turn{number}.prompt", got=_text_of(segments), expected=turn.get("prompt"))
        prompt, ids = _spliced(family, _as_told(turn, segments), video)
        yield Claim(name=f"turn{number}.segment_ids", got=ids, expected=turn.get("segment_ids"))
        answer = _Answer(family, prompt, max_tokens)
        yield from answer.findings(f"turn{number}", turn)
        if number == 1:
            yield from answer.first_turn_findings(dialogue)
        turns.append(Turn(role="assistant", text=turn.get("text", answer.text)))


class _Answer:
    """What a model says after a prompt, greedily."""

    def __init__(self, family: Family, prompt: Tensor, max_tokens: int) -> None:
        self._llama, self._prompt, self._max_tokens = family.language_model, prompt, max_tokens
        self.ids, self.logits = self._greedy(eos=EOS, stop=STOP_IDS)
        said = family.tokenizer.decode(self.ids)
        self.text = said.split("###")[0].split("Assistant:")[-1].removesuffix("</s>").strip()

    def findings(self, prefix: str, told: Mapping[str, Any]) -> Iterator[Finding]:
        """Tensors, text and beams, against one turn of `dialogue.json`."""
        ids = f"{prefix}.generated_ids"
        beams = search_beams(self._llama, self._prompt, num_beams=NUM_BEAMS, max_tokens=self._max_tokens, eos=EOS)
        text, told_beams = told.get("text"), told.get(f"beam{NUM_BEAMS}_raw_sequence")
        yield Stage(name=f"{prefix}.inputs_embeds", tensor=self._prompt)
        yield Stage(name=ids, tensor=torch.tensor(self.ids), is_choice=True, is_said=True)
        yield Stage(name=f"{prefix}.greedy_logits", tensor=self.logits, follows=ids, is_said=True)
        yield Claim(
            name=f"{prefix}.text",
            got=self.text,
            expected=None if text is None else text.removesuffix("</s>").strip(),
            is_choice=True,
        )
        yield Claim(
            name=f"{prefix}.beam{NUM_BEAMS}",
            got=beams,
            expected=None if told_beams is None else _without_bos(told_beams),
            is_choice=True,
        )

    def first_turn_findings(self, dialogue: Mapping[str, Any]) -> Iterator[Finding]:
        """What is told of the first turn alone: probabilities, stop sequences, another end-of-sequence."""
        for temperature in TEMPERATURES:
            params = SamplingParams(temperature=temperature, top_k=50, top_p=0.9)
            yield Stage(
                name=f"sampling.t{temperature}.probs",
                tensor=sampling_probabilities(self.logits[:NUM_SAMPLED_STEPS], params),
                follows="turn1.generated_ids",
                is_choice=True,
                is_said=True,
            )
        for number, case in enumerate(dialogue.get("stop_cases", [])):
            ids, _ = self._greedy(eos=EOS, stop=tuple(map(tuple, case["stop_sequences"])))
            yield Claim(name=f"stop_cases.{number}", got=ids, expected=case.get("generated_ids"), is_choice=True)
        if case := dialogue.get("eos_case"):
            ids, _ = self._greedy(eos=case["eos_token_id"], stop=())
            yield Claim(name="eos_case", got=ids, expected=case.get("generated_ids"), is_choice=True)

    def _greedy(self, *, eos: int, stop: tuple[tuple[int, ...], ...]) -> tuple[list[int], Tensor]:
        return decode_greedily(self._llama, self._prompt, max_tokens=self._max_tokens, eos=eos, stop=stop)


def _spliced(family: Family, segments: tuple[Part, ...], video: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Embeddings [1, L, hidden] of a prompt with the video tokens in their place, and the ids of its texts."""
    parts = tokenize_segments(family.tokenizer, segments)
    embed = family.language_model.get_input_embeddings()
    with torch.inference_mode():
        rows = [
            video if isinstance(part, VideoSlot) else embed(torch.tensor(part, device=video.device)) for part in parts
        ]
        return torch.cat(rows).unsqueeze(0), [list(part) for part in parts if not isinstance(part, VideoSlot)]


def _as_told(turn: Mapping[str, Any], ours: tuple[Part, ...]) -> tuple[Part, ...]:
    """The reference's texts, if there are, so that a prompt that differs does not spoil the stages after it."""
    texts = turn.get("segments")
    if not texts:
        return ours
    return tuple(part for text in texts for part in (text, VideoSlot(0)))[:-1]


def _text_of(segments: tuple[Part, ...]) -> str:
    return "".join("<VideoHere>" if isinstance(part, VideoSlot) else str(part) for part in segments)


def _without_bos(ids: list[int]) -> list[int]:
    return ids[1:] if ids[:1] == [BOS] else ids


def _clip_of(message: str) -> Clip:
    """A clip with the moments that a message names; at ten frames a second, tenths of a second are frames."""
    tenths = tuple(int(whole) * 10 + int(tenth) for whole, tenth in re.findall(r"(\d+)\.(\d)", message))
    return Clip(frame_indices=tenths, fps=10.0)


def _decoded(family: Family, path: Path) -> tuple[Clip, Tensor]:
    """A file's sampled moments and its pixels [1, T, 3, S, S]."""
    # Needs PyAV, which folders with pixels do without.
    from model.video.reader import open_video
    from model.video.spec import VideoLimits

    if not path.is_file():
        raise WeightsError(f"{path.parent} has neither inputs.safetensors nor clip.mp4: there is nothing to run.")
    with open_video(path, VideoLimits()) as video:
        fps = video.facts.fps
        frames = list(video.frames(family.frame_spec))
    squares = np.stack([resize(frame.rgb, family.pixel_spec) for frame in frames])
    pixel_values = torch.from_numpy(normalize(squares, family.pixel_spec)).unsqueeze(0)
    return Clip(frame_indices=tuple(frame.index for frame in frames), fps=fps), pixel_values


def _clip_findings(clip: Clip, pixel_values: Tensor, path: Path) -> Iterator[Finding]:
    told = read_object(path) if path.is_file() else {}
    yield Claim(name="clip.indices", got=list(clip.frame_indices), expected=told.get("indices"))
    by_channel = pixel_values[0].flatten(2)  # [T, 3, S * S]
    yield Stage(name="video_stats", tensor=torch.stack((by_channel.mean(-1), by_channel.std(-1))))
