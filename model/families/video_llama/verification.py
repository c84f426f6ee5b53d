"""Video-LLaMA's verification stages, from frames and sound to answers, named like the reference tensors.

A folder has either `inputs.safetensors`, with pixels, spectrograms and token ids, or `clip.mp4`, whose frames and sound
are decoded first, and whose conversations are in both styles of prompt.
"""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.json_object import read_object
from model.families.video_llama.network import VideoLlamaNetwork
from model.families.video_llama.template import Llama2Template, VicunaTemplate
from model.family import Family, tokenize_segments
from model.features import AUDIO, VIDEO
from model.sound import mel_spectrograms
from model.text.conversation import Clip, Conversation, Piece, Slot, SpecialToken, Template, Turn
from model.verification.answer_length import AnswerLengths
from model.verification.decoding import decode_greedily
from model.verification.frames import frame_findings
from model.verification.inputs import (
    INPUTS_FILE,
    checked,
    embedded,
    read_dialogue,
    read_inputs,
    sampled_clip,
    token_rows,
)
from model.verification.stage import Claim, Finding, Stage, recorded
from model.video.pixels import normalize
from model.video.spec import SOUND_ERRORS
from model.weights import WeightsError

NUM_ANSWER_TOKENS = 16
"""The default of a folder that has no answer and does not set it."""
SOUND_TOLERANCE = 1e-4
"""Of whatever is computed from a file's sound, whose resampling and spectrogram are float32 in the original."""
STOP_IDS = ((835,), (2277, 29937))
"""The ids of `###` in LLaMA's vocabulary, at which the original stops with any tokenizer, in the style of Vicuna."""
TEMPLATES: Mapping[str, Template] = {"vicuna": VicunaTemplate(), "llama_2": Llama2Template()}
"""The templates by their names in the references."""
MARK = "<ImageHere>"


def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder.

    Raises:
        WeightsError: the folder lacks its inputs or its dialogue, or its clip has no sound.
    """
    assert isinstance(family.network, VideoLlamaNetwork), "these stages are for Video-LLaMA"
    if (folder / INPUTS_FILE).is_file():
        yield from _from_inputs(family, folder)
    else:
        yield from _from_clip(family, folder)


def _from_inputs(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute the stages from `pixel_values` [3, T, H, W] and perhaps `audio_mel` [1, count, 1, bins, frames]."""
    inputs = read_inputs(folder, "pixel_values", "video_segment_0_ids", "video_segment_1_ids")
    mel = inputs.get("audio_mel") if family.inputs is not None and family.inputs.sound is not None else None
    rows = yield from encoder_stages(family, inputs["pixel_values"].transpose(0, 1)[None], mel)
    values = checked(read_object(folder / "config.json"), folder / "config.json")
    lengths = AnswerLengths(folder, default=NUM_ANSWER_TOKENS)
    for suffix, prefix, slots in (("", "video", (VIDEO,)), ("_av", "av", (AUDIO, VIDEO))):
        if not rows.keys() >= set(slots):
            continue
        names = [f"{prefix}_segment_{number}_ids" for number in range(len(slots) + 1)]
        if missing := [name for name in names if name not in inputs]:
            raise WeightsError(f"{folder / INPUTS_FILE} lacks {missing[0]}.")
        ids = [token_rows(family, inputs, name)[0] for name in names]
        if "prompt_video" in values:
            clip = _clip_of(values["prompt_video"], slots)
            conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text=values["question"]),))
            pieces = VicunaTemplate().render(conversation)
            prompt = values["prompt_video" if slots == (VIDEO,) else "prompt_audio_video"]
            yield Claim(name=f"prompt{suffix}", got=_text_of(pieces), expected=prompt)
            yield Claim(name=f"{prefix}_segment_ids", got=_segment_ids(family, pieces), expected=ids)
        embeds = _spliced(family, ids, [rows[part] for part in slots])
        yield Stage(name=f"inputs_embeds{suffix}", tensor=embeds)
        name = f"greedy_ids{suffix}"
        max_tokens = lengths.of(name, ends=((family.tokenizer.eos_id,),))
        answer, logits = _answer(family, embeds, max_tokens, stop=())
        yield Stage(name=f"logits_first{suffix}", tensor=logits[0], is_of_language_model=True)
        greedy = torch.tensor(answer)
        yield Stage(name=name, tensor=greedy, is_choice=True, is_of_language_model=True)


def _clip_of(prompt: str, parts: Sequence[str]) -> Clip:
    """Return a clip with the times in a prompt; at ten frames a second, tenths of a second are frame indices."""
    times = re.findall(r"(\d+)\.(\d)", prompt.partition("sampled at")[2].partition("seconds")[0])
    tenths = tuple(int(whole) * 10 + int(tenth) for whole, tenth in times)
    return Clip(frame_indices=tenths, fps=10.0, parts=frozenset(parts))


def _from_clip(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute the stages from the folder's `clip.mp4`."""
    dialogue = read_dialogue(folder, "questions", "conversations")
    conversations = _conversations(dialogue["conversations"], folder / "dialogue.json")
    sampled = sampled_clip(family, folder)
    assert family.inputs is not None, "the model sees videos"
    if sampled.sound_error is not None:
        raise WeightsError(f"{folder / 'clip.mp4'} has no sound to run: {SOUND_ERRORS[sampled.sound_error]}")
    clip = Clip(frame_indices=sampled.indices, fps=sampled.facts.fps)
    pixel_values = torch.from_numpy(normalize(sampled.inputs.frames, family.inputs.pixels))[None]
    yield from frame_findings(clip, pixel_values, folder)
    yield Stage(name="pixel_values_sub7", tensor=pixel_values[0].transpose(0, 1)[..., ::7, ::7])
    mel = None
    if sampled.inputs.sound is not None and family.inputs.sound is not None:
        mel = torch.from_numpy(mel_spectrograms(sampled.inputs.sound, family.inputs.sound))[None]
        yield Stage(name="audio_mel_sub", tensor=mel[..., ::4, ::4], tolerance=SOUND_TOLERANCE)
    rows = yield from encoder_stages(family, pixel_values, mel, sound_tolerance=SOUND_TOLERANCE)
    lengths = AnswerLengths(folder, default=NUM_ANSWER_TOKENS)
    for style, senses in conversations.items():
        for sense, conversation in senses.items():
            heard = frozenset(conversation["slots"])
            if heard <= rows.keys():
                seen = Clip(frame_indices=clip.frame_indices, fps=clip.fps, parts=heard)
                yield from _dialogue(
                    family,
                    f"{style}.{sense}",
                    style,
                    conversation,
                    clip=seen,
                    rows=rows,
                    lengths=lengths,
                )


def _conversations(values: Any, path: Path) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Return the conversations by style and by senses.

    Raises:
        WeightsError: they are of another form or style, or one lacks its slots or its turns.
    """
    if not isinstance(values, dict) or not all(isinstance(senses, dict) for senses in values.values()):
        raise WeightsError(f"conversations in {path} must be objects by style and senses.")
    if unknown := sorted(values.keys() - TEMPLATES.keys()):
        raise WeightsError(f"{path} has conversations in an unknown style, {unknown[0]}.")
    for senses in values.values():
        for sense, conversation in senses.items():
            if not isinstance(conversation, dict) or not conversation.keys() >= {"slots", "turns"}:
                raise WeightsError(f"The conversation {sense} in {path} lacks its slots or its turns.")
            if not all("question" in turn for turn in conversation["turns"]):
                raise WeightsError(f"A turn of {sense} in {path} lacks its question.")
    return values


def encoder_stages(
    family: Family, pixel_values: Tensor, mel: Tensor | None, *, sound_tolerance: float = 0.0
) -> Generator[Stage, None, dict[str, Tensor]]:
    """Compute the stages of one clip's frames [1, T, 3, H, W] and sound [1, count, 1, bins, frames].

    Returns:
        The rows of the prompt by part, [rows, hidden].
    """
    network = family.network
    assert isinstance(network, VideoLlamaNetwork), "these stages are for Video-LLaMA"
    modules: dict[str, nn.Module] = {
        "vit_tokens": network.ln_vision,
        "qformer_tokens": network.qformer.encoder.layer[-1],
    }
    if mel is not None:
        modules["imagebind_audio"] = network.audio_encoder
    with recorded(modules) as outputs:
        features = family.encode(pixel_values, mel)
    rows = {part: family.project(part, tensor) for part, tensor in features.items()}
    yield Stage(name="vit_tokens", tensor=outputs["vit_tokens"])
    yield Stage(name="qformer_tokens", tensor=outputs["qformer_tokens"])
    yield Stage(name="video_qformer_tokens", tensor=features[VIDEO])
    yield Stage(name="video_tokens", tensor=rows[VIDEO])
    if mel is not None:
        for name, tensor in (
            ("imagebind_audio", outputs["imagebind_audio"][None]),
            ("audio_qformer_tokens", features[AUDIO]),
            ("audio_tokens", rows[AUDIO]),
        ):
            yield Stage(name=name, tensor=tensor, tolerance=sound_tolerance)
    return {part: tensor[0] for part, tensor in rows.items()}


def _dialogue(
    family: Family,
    prefix: str,
    style: str,
    conversation: Mapping[str, Any],
    *,
    clip: Clip,
    rows: Mapping[str, Tensor],
    lengths: AnswerLengths,
) -> Iterator[Finding]:
    """Compute the stages of every turn of a conversation in one style about a clip with these rows."""
    turns: list[Turn] = []
    parts = conversation["slots"]
    tolerance = SOUND_TOLERANCE if AUDIO in parts else 0.0
    for number, expected in enumerate(conversation["turns"], start=1):
        name = f"{prefix}.turn{number}"
        turns.append(Turn(role="user", text=expected["question"]))
        asked = Conversation(clips=(clip,), turns=tuple(turns), system=conversation.get("system", ""))
        pieces = TEMPLATES[style].render(asked)
        ids = _segment_ids(family, pieces)
        yield Claim(name=f"{name}.prompt", got=_text_of(pieces), expected=expected.get("prompt"))
        yield Claim(name=f"{name}.segment_ids", got=ids, expected=expected.get("segment_ids"))
        # The reference's ids if there are any, so that a wrong prompt does not change later stages.
        embeds = _spliced(family, expected.get("segment_ids") or ids, [rows[part] for part in parts])
        yield Stage(name=f"{name}.inputs_embeds", tensor=embeds, tolerance=tolerance)
        stop = STOP_IDS if style == "vicuna" else ()
        ends = ((family.tokenizer.eos_id,), *stop)
        max_tokens = lengths.of(f"{name}.generated_ids", told=expected.get("generated_ids"), ends=ends)
        answer, logits = _answer(family, embeds, max_tokens, stop=stop)
        yield Stage(
            name=f"{name}.generated_ids", tensor=torch.tensor(answer), is_choice=True, is_of_language_model=True
        )
        yield Stage(
            name=f"{name}.greedy_logits",
            tensor=logits,
            follows=f"{name}.generated_ids",
            tolerance=tolerance,
            is_of_language_model=True,
        )
        text = _clean(family.tokenizer.decode(answer), style)
        yield Claim(name=f"{name}.text", got=text, expected=expected.get("text"), is_choice=True)
        turns.append(Turn(role="assistant", text=expected.get("text", text)))


def _clean(text: str, style: str) -> str:
    """Cut an answer as the demo does."""
    if style == "vicuna":
        return text.split("###", maxsplit=1)[0].rsplit("Assistant:", maxsplit=1)[-1].strip()
    return text.split("</s>", maxsplit=1)[0].rsplit("ASSISTANT:", maxsplit=1)[-1].strip()


def _text_of(pieces: Sequence[Piece]) -> str:
    """Return a prompt as one text, with a mark for each slot."""
    return "".join(
        MARK if isinstance(piece, Slot) else piece.name if isinstance(piece, SpecialToken) else piece
        for piece in pieces
    )


def _segment_ids(family: Family, pieces: Sequence[Piece]) -> list[list[int]]:
    """Return the token ids between slots."""
    segments: list[list[int]] = [[]]
    for piece in tokenize_segments(family.tokenizer, pieces):
        if isinstance(piece, Slot):
            segments.append([])
        else:
            segments[-1] += piece
    return segments


@torch.inference_mode()
def _spliced(family: Family, segments: Sequence[Sequence[int]], rows: Sequence[Tensor]) -> Tensor:
    """Return embeddings [1, L, hidden] of a prompt: its segments, with the rows of a slot after each but the last."""
    texts = [embedded(family, segment) for segment in segments]
    pieces = [piece for text, slot in zip(texts, rows, strict=False) for piece in (text, slot)]
    return torch.cat((*pieces, texts[-1])).unsqueeze(0)


def _answer(
    family: Family, embeds: Tensor, max_tokens: int, *, stop: Sequence[Sequence[int]]
) -> tuple[list[int], Tensor]:
    return decode_greedily(family.language_model, embeds, max_tokens=max_tokens, eos=family.tokenizer.eos_id, stop=stop)
