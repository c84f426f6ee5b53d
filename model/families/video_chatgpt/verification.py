"""Video-ChatGPT's verification stages, from pixels to an answer, named like the reference tensors."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.families.video_chatgpt.network import VideoChatGPTNetwork
from model.families.video_chatgpt.published import VIDEO_END, VIDEO_PATCH, VIDEO_START
from model.family import Family
from model.features import VIDEO
from model.text.conversation import Clip, Conversation, Slot, SpecialToken, Turn
from model.verification.decoding import decode_greedily
from model.verification.inputs import read_inputs
from model.verification.stage import Claim, Finding, Stage
from model.weights import WeightsError

NUM_ANSWER_TOKENS = 16


@torch.inference_mode()
def verify_stages(family: Family, folder: Path) -> Iterator[Finding]:
    """Compute every stage of the model on the inputs in a folder: `pixel_values` [T, 3, H, W], `input_ids` [1, L].

    With T frames of S patches of width C, hidden size D and vocabulary V: `frame_features` [T, S, C],
    `spatio_temporal_features` [100 + S, C] and its `_half` in float16, `video_tokens` [100 + S, D],
    `inputs_embeds` [1, L, D], `logits_first` [V], and the int64 `greedy_ids` of an answer.

    Raises:
        WeightsError: the folder lacks its inputs, or they have no slot for a video.
    """
    network, device = family.network, family.device
    assert isinstance(network, VideoChatGPTNetwork), "these stages are for Video-ChatGPT"
    inputs = read_inputs(folder, "pixel_values", "input_ids")
    input_ids = inputs["input_ids"].to(device)
    patches = network.see(inputs["pixel_values"].to(device, family.dtype).unsqueeze(0))
    yield Stage(name="frame_features", tensor=patches[0])
    features = network.pool(patches)[0]
    yield Stage(name="spatio_temporal_features", tensor=features)
    yield Stage(name="spatio_temporal_features_half", tensor=features.half())
    video_tokens = network.project(VIDEO, features)
    yield Stage(name="video_tokens", tensor=video_tokens)
    yield from _prompt(family, folder, input_ids[0].tolist())
    inputs_embeds = _spliced(family, input_ids, video_tokens)
    yield Stage(name="inputs_embeds", tensor=inputs_embeds)
    ids, logits = decode_greedily(
        network.decoder, inputs_embeds, max_tokens=NUM_ANSWER_TOKENS, eos=family.tokenizer.eos_id
    )
    yield Stage(name="logits_first", tensor=logits[0], is_of_language_model=True)
    yield Stage(name="greedy_ids", tensor=torch.tensor(ids), is_choice=True, is_of_language_model=True)


def _prompt(family: Family, folder: Path, input_ids: list[int]) -> Iterator[Claim]:
    """Compare the prompt, as text and as ids, if the folder's `config.json` has a question."""
    values = read_object(folder / "config.json")
    if "question" not in values:
        return
    clip = Clip(frame_indices=(0,), fps=1.0)
    conversation = Conversation(clips=(clip,), turns=(Turn(role="user", text=values["question"]),))
    patches = [VIDEO_PATCH] * family.num_video_tokens
    texts: list[str] = []
    for piece in family.template.render(conversation):
        texts += patches if isinstance(piece, Slot) else [piece.name if isinstance(piece, SpecialToken) else piece]
    yield Claim(name="prompt", got="".join(texts), expected=values.get("prompt"))
    patch_ids = tuple(map(family.tokenizer.special_id, patches))
    pieces = [patch_ids if isinstance(piece, Slot) else piece for piece in family.tokenize(conversation)]
    yield Claim(name="input_ids", got=[token for piece in pieces for token in piece], expected=input_ids)


def _spliced(family: Family, input_ids: Tensor, video_tokens: Tensor) -> Tensor:
    """Return embeddings [1, L, D] of `input_ids` [1, L], with `video_tokens` [N, D] between start and end token."""
    row = input_ids[0].tolist()
    start, end = map(family.tokenizer.special_id, (VIDEO_START, VIDEO_END))
    if start not in row:
        raise WeightsError("The prompt in the inputs has no slot for a video.")
    first = row.index(start) + 1
    last = first + len(video_tokens)
    if row[last : last + 1] != [end]:
        raise WeightsError("The prompt in the inputs has no slot for a video of this many tokens.")
    embeddings: Tensor = family.language_model.get_input_embeddings()(input_ids)
    return torch.cat((embeddings[:, :first], video_tokens.unsqueeze(0), embeddings[:, last:]), dim=1)
