"""Reads MobiLlama's published folders, and decides from the tensors whether the layers share one MLP."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from model.checkpoints.folder import TOKENIZER, read_folder
from model.checkpoints.huggingface import first_llama
from model.checkpoints.json_object import read_object
from model.checkpoints.published import LLAMA_FOLDER, Keys, PublishedModel, PublishedPart, Source
from model.checkpoints.pulled import PULLED, pulled_repository
from model.families.mobillama.network import MobiLlamaConfig, Prompt
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from model.weights import WeightsError, same_values

MODEL = "MobiLlama"
BUFFERS = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""Computed again, not loaded."""

PUBLISHED_05B = MobiLlamaConfig(
    decoder=DecoderConfig(vocab_size=32000, width=2048, depth=22, num_heads=32, mlp_width=5632, rms_eps=1e-5),
    shared_mlp=True,
)
PUBLISHED_08B = MobiLlamaConfig(
    decoder=DecoderConfig(
        vocab_size=32000, width=2560, depth=22, num_heads=32, mlp_width=10240, max_positions=2560, rms_eps=1e-5
    ),
    shared_mlp=True,
)
PUBLISHED_1B = MobiLlamaConfig(decoder=PUBLISHED_05B.decoder, shared_mlp=False)

_NAMED = re.compile(r"mobi-?llama[-_. ]?(0?[58]|0\.[58]|1)b", re.IGNORECASE)
"""A repository's name, or a folder's like it, in which `chat` tells whether the model is trained to chat.

The files do not tell: those of both kinds are the same."""

PUBLISHED = PublishedModel(
    MODEL,
    PublishedPart(
        name="llama",
        folder=LLAMA_FOLDER,
        keys=Keys(
            wanted=(
                r"model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight|model\.layers\.\d+\."
                r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight"
            ),
            unused=BUFFERS,
        ),
    ),
)


def read_sizes(path: Path) -> MobiLlamaConfig:
    """Read the sizes in a `config.json`: in our layout, or in Hugging Face's, with the weights beside it.

    Raises:
        WeightsError: the file is absent, a size is missing, unknown or impossible, or the weights are damaged.
    """
    values = read_object(path)
    try:
        if "decoder" in values:
            return MobiLlamaConfig.from_json(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} does not hold the sizes of a {MODEL} model ({error}).") from error
    decoder = _published_sizes(path)
    return MobiLlamaConfig(
        decoder=decoder,
        shared_mlp=shares_mlp(read_folder(path.parent), decoder.depth),
        prompt=prompt_of(path.parent).prompt,
    )


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str]
) -> Source[MobiLlamaConfig]:
    """Read a published repository: `config.json`, `tokenizer.model`, and weights in one file or in shards.

    Args:
        folder: the repository, or a folder that holds it.
        named: can name the repository as the part `llama` instead.
        ignored: keys that the user knows to be harmless.

    Raises:
        WeightsError: a file is absent, damaged or another model's.
        TokenizerError: the tokenizer cannot be used.
    """
    if folder is not None and not named and (folder / "config.json").is_file():
        named = {"llama": folder}
    paths = PUBLISHED.find(folder, named)
    path = paths["llama"]
    decoder = _published_sizes(path / "config.json")
    num_pieces = read_sentencepiece(path / TOKENIZER).vocab_size
    if num_pieces != decoder.vocab_size:
        raise WeightsError(
            f"The {TOKENIZER} of {path} has {num_pieces} pieces, but config.json names {decoder.vocab_size}; one of "
            "them belongs to another model."
        )
    tensors = PUBLISHED.read("llama", paths, ignored=ignored)
    choice = prompt_of(path)
    config = MobiLlamaConfig(decoder=decoder, shared_mlp=shares_mlp(tensors, decoder.depth), prompt=choice.prompt)
    return Source(config=config, tensors=tensors, tokenizer=path / TOKENIZER, files=paths.values(), note=choice.note())


def shares_mlp(tensors: Mapping[str, Tensor], depth: int) -> bool:
    """Return whether all layers have one MLP: the tensors of those layers that have any are equal.

    `config.json` does not say it: the 0.5B, which shares, and the 1B, which does not, have the same.

    Raises:
        WeightsError: some layers have equal MLPs and others do not.
    """
    equal: list[str] = []
    unequal: list[str] = []
    for names in _mlp_names(depth):
        present = [name for name in names if name in tensors]
        for before, name in pairwise(present):
            (equal if same_values(tensors[name], tensors[before]) else unequal).append(name)
    if equal and unequal:
        few, many = sorted((unequal, equal), key=len)
        state = "differs from" if few is unequal else "is equal to"
        raise WeightsError(
            f"{few[0]} {state} the layer before it, unlike {many[0]}: the layers share one MLP in part only. "
            "The file is damaged, or of another model."
        )
    return not unequal


def with_every_name(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the tensors with those of a shared MLP under the name of every layer, whichever of them were there."""
    added: dict[str, Tensor] = {}
    for names in _mlp_names(depth):
        shared = next((tensors[name] for name in names if name in tensors), None)
        added |= {name: shared for name in names if shared is not None and name not in tensors}
    return {**tensors, **added}


def _mlp_names(depth: int) -> list[list[str]]:
    """Return the names of the three matrices of the MLP in every layer."""
    return [
        [f"model.layers.{number}.mlp.{kind}_proj.weight" for number in range(depth)] for kind in ("gate", "up", "down")
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptChoice:
    """How a published checkpoint is prompted, and what told it."""

    prompt: Prompt
    source: str
    """The name that told it; empty if no name did."""

    def note(self) -> str:
        """Return a sentence for the user."""
        model = "a base model, which continues a text" if self.prompt == "plain" else "a chat model"
        if self.source:
            return f"The prompt is {self.prompt}: {self.source} is {model}."
        return (
            f"The prompt is {self.prompt}, as for {model}: no name tells which model this is, and the files of a base "
            'model are the same. If it is one, put {"repository": "MBZUAI/MobiLlama-05B"} into '
            f"{PULLED} beside its config.json, and convert again."
        )


def prompt_of(folder: Path) -> PromptChoice:
    """Choose how a published checkpoint is prompted: `plain` for base models, which only names tell.

    The names are the repository that `reeltalk pull` recorded, then the folder's, then that of a folder in the cache of
    Hugging Face (`models--OWNER--NAME/snapshots/COMMIT`). Case does not matter.

    Raises:
        WeightsError: the record of `reeltalk pull` is damaged.
    """
    resolved = folder.resolve()
    cached = [part for part in resolved.parts if part.startswith("models--")]
    for name in (pulled_repository(folder), folder.absolute().name, resolved.name, *reversed(cached)):
        if name and "chat" in name.lower():
            return PromptChoice(prompt="one-shot", source=name)
        if name and _NAMED.search(name):
            return PromptChoice(prompt="plain", source=name)
    return PromptChoice(prompt="one-shot", source="")


def _published_sizes(path: Path) -> DecoderConfig:
    """Read a published `config.json`; its `num_key_value_heads` is wrong: all heads have keys and values of their own.

    Raises:
        WeightsError: the file is absent, or describes another model.
    """
    return first_llama(read_object(path), path.parent, key_value_heads=False)
