"""VideoChat's verification stages, from pixels to an answer in two turns, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels, or `clip.mp4`, whose frames are decoded first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.engine.sampling_params import SamplingParams
from model.families.videochat.network import VideoChatNetwork
from model.family import Family, tokenize_segments
from model.features import VIDEO
from model.text.conversation import Clip, Conversation, Piece, Slot, Turn
from model.verification.answer_length import AnswerLengths
from model.verification.decoding import decode_greedily, sampling_probabilities, search_beams
from model.verification.frames import frame_findings
from model.verification.inputs import embedded, read_clip, read_dialogue, read_inputs
from model.verification.stage import Claim, Finding, Stage, recorded

TEMPERATURES = (0.7, 1.0, 2.0)
NUM_SAMPLED_STEPS = 3
NUM_BEAMS = 3
MAX_TOKENS = 20
"""The default of a folder that has no answer and does not set it."""
BOS, EOS = 1, 2
STOP_IDS = ((835,), (2277, 29937))
"""The ids of `###` in LLaMA's vocabulary, at which the original stops with any tokenizer."""


def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    Raises:
        WeightsError: the folder lacks its inputs or its dialogue.
    """
    network = family.network
    assert isinstance(network, VideoChatNetwork), "these stages are for VideoChat"
    dialogue = read_dialogue(folder, "questions")
    if (folder / "inputs.safetensors").is_file():
        dialogue, inputs = read_dialogue(folder, "video_message"), read_inputs(folder, "video", "video_other", "image")
        outputs = encoder_stages(network, inputs["video"])
        yield from _named(outputs)
        yield from _key_stages("batch.", network, torch.cat((inputs["video_other"], inputs["video"])))
        yield from _key_stages("image.", network, inputs["image"])
        clip = _clip_of(dialogue["video_message"])
    else:
        clip, pixel_values = read_clip(family, folder)
        yield from frame_findings(clip, pixel_values, folder)
        outputs = encoder_stages(network, pixel_values)
        # References with a clip hold no stages of single frames; references with pixels check those.
        yield from (stage for stage in _named(outputs) if not re.match(r"patch_embed|blocks\.|ln_vision", stage.name))
    lengths = AnswerLengths(folder, default=MAX_TOKENS)
    yield from _dialogue(family, lengths, dialogue, clip, outputs["inputs_llama"][0])


def encoder_stages(network: VideoChatNetwork, pixel_values: Tensor) -> dict[str, Tensor]:
    """Compute every stage from pixels [B, T, 3, H, W] to video tokens, in order and in the original's layout."""
    weight = network.llama_proj.weight
    num_clips, num_frames = pixel_values.shape[:2]
    with torch.inference_mode(), recorded(_modules(network)) as outputs:
        features = network.encode(pixel_values.to(weight.device, weight.dtype))[VIDEO]
        outputs["query_output.last_hidden_state"] = features
        outputs["inputs_llama"] = network.project(VIDEO, features)
    patches = outputs["patch_embed"]
    patches = patches.reshape(num_clips, num_frames, *patches.shape[1:])
    outputs["patch_embed"] = patches.transpose(1, 2)  # [B, C, T, h, w], the output of a convolution over time
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


def _key_stages(prefix: str, network: VideoChatNetwork, pixel_values: Tensor) -> Iterator[Stage]:
    outputs = encoder_stages(network, pixel_values)
    for name in ("visual_encoder", "inputs_llama"):
        yield Stage(name=prefix + name, tensor=outputs[name])


def _dialogue(
    family: Family, lengths: AnswerLengths, dialogue: Mapping[str, Any], clip: Clip, video: Tensor
) -> Iterator[Finding]:
    """Compute the stages of a conversation about video tokens [N, hidden]."""
    expected_turns = dialogue.get("turns", [])
    turns: list[Turn] = []
    for number, question in enumerate(dialogue["questions"], start=1):
        expected = expected_turns[number - 1] if number <= len(expected_turns) else {}
        turns.append(Turn(role="user", text=question))
        segments = family.template.render(
            Conversation(clips=(clip,), turns=tuple(turns), system=dialogue.get("system", ""))
        )
        yield Claim(name=f"turn{number}.prompt", got=_text_of(segments), expected=expected.get("prompt"))
        prompt, ids = _spliced(family, _expected_texts(expected, segments), video)
        yield Claim(name=f"turn{number}.segment_ids", got=ids, expected=expected.get("segment_ids"))
        answer = _Answer(family, prompt, lengths, f"turn{number}", expected)
        yield from answer.findings(expected)
        if number == 1:
            yield from answer.first_turn_findings(dialogue)
        turns.append(Turn(role="assistant", text=expected.get("text", answer.text)))


class _Answer:
    """A model's greedy answer to a prompt."""

    def __init__(
        self, family: Family, prompt: Tensor, lengths: AnswerLengths, prefix: str, expected: Mapping[str, Any]
    ) -> None:
        self._llama, self._prompt, self._lengths, self._prefix = family.language_model, prompt, lengths, prefix
        self.ids, self.logits = self._greedy(
            f"{prefix}.generated_ids", expected.get("generated_ids"), eos=EOS, stop=STOP_IDS
        )
        text = family.tokenizer.decode(self.ids)
        self.text = text.split("###")[0].split("Assistant:")[-1].removesuffix("</s>").strip()

    def findings(self, expected: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield tensors, text and beams, with the expected values of one turn of `dialogue.json`."""
        prefix, text = self._prefix, expected.get("text")
        ids, beam_ids = f"{prefix}.generated_ids", expected.get(f"beam{NUM_BEAMS}_raw_sequence")
        expected_beams = None if beam_ids is None else _without_bos(beam_ids)
        max_tokens = self._lengths.of(f"{prefix}.beam{NUM_BEAMS}", told=expected_beams, ends=((EOS,),))
        beams = search_beams(self._llama, self._prompt, num_beams=NUM_BEAMS, max_tokens=max_tokens, eos=EOS)
        yield Stage(name=f"{prefix}.inputs_embeds", tensor=self._prompt)
        yield Stage(name=ids, tensor=torch.tensor(self.ids), is_choice=True, is_of_language_model=True)
        yield Stage(name=f"{prefix}.greedy_logits", tensor=self.logits, follows=ids, is_of_language_model=True)
        yield Claim(
            name=f"{prefix}.text",
            got=self.text,
            expected=None if text is None else text.removesuffix("</s>").strip(),
            is_choice=True,
        )
        yield Claim(
            name=f"{prefix}.beam{NUM_BEAMS}",
            got=beams,
            expected=expected_beams,
            is_choice=True,
        )

    def first_turn_findings(self, dialogue: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield findings of the first turn only: probabilities, stop sequences, another end-of-sequence token."""
        for temperature in TEMPERATURES:
            params = SamplingParams(temperature=temperature, top_k=50, top_p=0.9)
            yield Stage(
                name=f"sampling.t{temperature}.probs",
                tensor=sampling_probabilities(self.logits[:NUM_SAMPLED_STEPS], params),
                follows="turn1.generated_ids",
                is_choice=True,
                is_of_language_model=True,
            )
        for number, case in enumerate(dialogue.get("stop_cases", [])):
            stop = tuple(map(tuple, case["stop_sequences"]))
            ids, _ = self._greedy(f"stop_cases.{number}", case.get("generated_ids"), eos=EOS, stop=stop)
            yield Claim(name=f"stop_cases.{number}", got=ids, expected=case.get("generated_ids"), is_choice=True)
        if case := dialogue.get("eos_case"):
            ids, _ = self._greedy("eos_case", case.get("generated_ids"), eos=case["eos_token_id"], stop=())
            yield Claim(name="eos_case", got=ids, expected=case.get("generated_ids"), is_choice=True)

    def _greedy(
        self, name: str, expected: Sequence[int] | None, *, eos: int, stop: tuple[tuple[int, ...], ...]
    ) -> tuple[list[int], Tensor]:
        max_tokens = self._lengths.of(name, told=expected, ends=((eos,), *stop))
        return decode_greedily(self._llama, self._prompt, max_tokens=max_tokens, eos=eos, stop=stop)


def _spliced(family: Family, segments: tuple[Piece, ...], video: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Return embeddings [1, L, hidden] of a prompt with the video tokens inserted, and the ids of its texts."""
    parts = tokenize_segments(family.tokenizer, segments)
    with torch.inference_mode():
        rows = [video if isinstance(part, Slot) else embedded(family, part) for part in parts]
        return torch.cat(rows).unsqueeze(0), [list(part) for part in parts if not isinstance(part, Slot)]


def _expected_texts(expected: Mapping[str, Any], ours: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return the reference's texts, or ours without them, so that a wrong prompt does not change later stages."""
    texts = expected.get("segments")
    if not texts:
        return ours
    return tuple(part for text in texts for part in (text, Slot(0)))[:-1]


def _text_of(segments: tuple[Piece, ...]) -> str:
    return "".join("<VideoHere>" if isinstance(part, Slot) else str(part) for part in segments)


def _without_bos(ids: list[int]) -> list[int]:
    return ids[1:] if ids[:1] == [BOS] else ids


def _clip_of(message: str) -> Clip:
    """Return a clip with the times in a message; at ten frames a second, tenths of a second are frame indices."""
    tenths = tuple(int(whole) * 10 + int(tenth) for whole, tenth in re.findall(r"(\d+)\.(\d)", message))
    return Clip(frame_indices=tenths, fps=10.0)
