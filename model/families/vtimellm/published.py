"""Finds VTimeLLM's published files, and merges them as the original loads them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.clip import ARCHIVE_PART, FOLDER_PART, read_clip
from model.checkpoints.folder import TOKENIZER
from model.checkpoints.huggingface import read_llama_config
from model.checkpoints.json_object import read_object
from model.checkpoints.lora import ADAPTER_CONFIG, fold, read_adapter
from model.checkpoints.published import (
    LLAMA_FOLDER,
    LLAMA_KEYS,
    FolderKind,
    Keys,
    PublishedModel,
    PublishedPart,
    Source,
    holds,
    read_llama,
)
from model.checkpoints.torch_file import read_torch_file
from model.families.vtimellm.network import VTimeLLMConfig
from model.families.vtimellm.sizes import PUBLISHED_7B
from model.networks.llama import DecoderConfig
from model.text.sentencepiece import read_sentencepiece
from model.weights import WeightsError

PROJECTOR, NON_LORA = "mm_projector.bin", "non_lora_trainables.bin"
STAGES = ("stage2", "stage3")
"""The parts that are adapters, in the order of training."""


def _ends_in(stage: str, file: str) -> FolderKind:
    """Recognise the folder of one stage of training, e.g. `vtimellm-vicuna-v1-5-7b-stage2`."""
    has_file: Callable[[Path], bool] = holds(file)
    return FolderKind(
        description=f"folder of {stage} (its name ends in {stage}, with {file})",
        matches=lambda folder: folder.name.endswith(stage) and has_file(folder),
    )


MODEL = PublishedModel(
    "VTimeLLM",
    ARCHIVE_PART,
    FOLDER_PART,
    PublishedPart(name="llama", keys=Keys(wanted=LLAMA_KEYS), folder=LLAMA_FOLDER),
    PublishedPart(
        name="stage1", keys=Keys(wanted=r"model\.mm_projector\.(weight|bias)"), folder=_ends_in("stage1", PROJECTOR)
    ),
    *(
        PublishedPart(
            name=stage,
            keys=Keys(wanted=r"(base_model\.)?(model\.)?model\.mm_projector\.(weight|bias)"),
            folder=_ends_in(stage, ADAPTER_CONFIG),
        )
        for stage in STAGES
    ),
)
"""The parts; `archive` and `vision` are the same CLIP. The keys of stages 2 and 3 are of `non_lora_trainables.bin`."""

_PROJECTION = ("model.mm_projector.weight", "model.mm_projector.bias")
_LLAMA_HINT = "VTimeLLM needs Vicuna 7B v1.5 (lmsys/vicuna-7b-v1.5); with another LLaMA its adapters give garbage."


def read_published(
    folder: Path | None, named: Mapping[str, Path], *, ignored: Sequence[str], dtype: torch.dtype | None
) -> Source[VTimeLLMConfig]:
    """Find and merge the published model.

    Raises:
        WeightsError: a part is neither named nor found, `named` has an unknown part, or see `merge`.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    paths = MODEL.find(folder, named)
    config, tensors = merge(paths, ignored=ignored, dtype=dtype)
    return Source(config=config, tensors=tensors, tokenizer=paths["llama"] / TOKENIZER, files=paths.values())


def merge(
    paths: Mapping[str, Path], *, ignored: Sequence[str] = (), dtype: torch.dtype | None = None
) -> tuple[VTimeLLMConfig, dict[str, Tensor]]:
    """Merge the files into sizes and a state dict, with the adapters of stages 2 and 3 added to LLaMA.

    All tensors are mapped except those that an adapter changes, and a CLIP in an archive. The adapters' sum does not
    depend on their order but for its rounding, so stages 2 and 3 that changed places give the same model.

    Args:
        paths: of the parts.
        ignored: keys, as they are in the files, that the user knows to be harmless.
        dtype: of the tensors that an adapter changes; None is that of the LLaMA.

    Raises:
        WeightsError: a file is absent, damaged, of another model, or holds an unknown key.
        TokenizerError: the LLaMA folder's tokenizer cannot be used.
    """
    decoder = read_llama_config(paths["llama"])
    _check_tokenizer(paths["llama"], decoder)
    sizes, vision = read_clip(MODEL, paths, ignored=ignored)
    config = VTimeLLMConfig(vision=sizes, projected_width=len(vision["visual_projection.weight"]), decoder=decoder)
    _check_published_size(paths, config)
    projection = _read_projection(paths, ignored)
    _check_projection(paths["stage1"], projection, config)
    adapters = [read_adapter(paths[stage]) for stage in STAGES]
    for stage in STAGES:
        _check_stage(paths[stage], decoder, paths["llama"])
    if adapters[0].equals(adapters[1]):
        raise WeightsError(
            f"{adapters[0].name} and {adapters[1].name} hold the same adapter. One is a copy of the other; "
            "download both again."
        )
    tensors = read_llama(paths["llama"], vocab_size=decoder.vocab_size, hint=_LLAMA_HINT)
    llama = MODEL.select("llama", paths, tensors, ignored=ignored)
    return config, vision | projection | fold(llama, adapters, dtype=dtype)


def _read_projection(paths: Mapping[str, Path], ignored: Sequence[str]) -> dict[str, Tensor]:
    """Return the projection of stage 1, or of the last stage that trained it further; as published, none did."""
    path = paths["stage1"] / PROJECTOR
    projection = MODEL.select("stage1", {"stage1": path}, read_torch_file(path), ignored=ignored)
    if missing := sorted(set(_PROJECTION) - projection.keys()):
        raise WeightsError(f"{path} lacks {missing[0]}. It is not the file published as {PROJECTOR}.")
    for stage in STAGES:
        path = paths[stage] / NON_LORA
        trained = MODEL.select(stage, {stage: path}, read_torch_file(path, may_be_empty=True), ignored=ignored)
        projection |= {f"model.mm_projector.{key.rpartition('.')[2]}": tensor for key, tensor in trained.items()}
    return projection


def _check_tokenizer(folder: Path, decoder: DecoderConfig) -> None:
    num_pieces = read_sentencepiece(folder / TOKENIZER).vocab_size
    if num_pieces != decoder.vocab_size:
        raise WeightsError(
            f"{folder} has a {TOKENIZER} of {num_pieces} pieces for {decoder.vocab_size} rows of embeddings. "
            f"{_LLAMA_HINT}"
        )


def _check_published_size(paths: Mapping[str, Path], config: VTimeLLMConfig) -> None:
    """Refuse a model of the published width with another CLIP or another LLaMA than the published ones."""
    if config.decoder.width != PUBLISHED_7B.decoder.width:
        return
    if config.decoder != PUBLISHED_7B.decoder:
        raise WeightsError(f"{paths['llama']} holds a LLaMA of other sizes. {_LLAMA_HINT}")
    if config.vision != PUBLISHED_7B.vision:
        path = paths.get("archive") or paths["vision"]
        raise WeightsError(f"{path} is another CLIP than VTimeLLM's, which is OpenAI's ViT-L/14 at 224 pixels.")


def _check_projection(stage1: Path, projection: Mapping[str, Tensor], config: VTimeLLMConfig) -> None:
    shapes = [list(projection[key].shape) for key in _PROJECTION]
    width, projected = config.decoder.width, config.projected_width
    if shapes != [[width, projected], [width]]:
        raise WeightsError(
            f"{stage1 / PROJECTOR} has the shapes {shapes[0]} and {shapes[1]}, but CLIP gives {projected} values and "
            f"the language model is {width} wide: they do not belong together. {_LLAMA_HINT}"
        )


def _check_stage(stage: Path, decoder: DecoderConfig, llama: Path) -> None:
    """Refuse an adapter whose `config.json` describes another language model, such as ChatGLM."""
    kind = read_object(stage / "config.json").get("model_type")
    if kind != MODEL.name:
        raise WeightsError(f"{stage / 'config.json'} is of a model of type {kind!r}, not {MODEL.name!r}.")
    if read_llama_config(stage) != decoder:
        raise WeightsError(f"{stage.name} was trained on a LLaMA of other sizes than {llama.name}. {_LLAMA_HINT}")
