"""Reads a CLIP of OpenAI's: the archive, a folder in Hugging Face's layout, or both, which must be equal."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.json_object import read_object
from model.checkpoints.openai_clip import openai_clip_sizes, read_openai_clip
from model.checkpoints.published import FolderKind, Keys, PublishedModel, PublishedPart
from model.networks.clip import OPENAI_ACTIVATION, ClipVisionConfig, clip_sizes
from model.weights import WeightsError

_PROJECTION = "visual_projection.weight"


def _is_clip(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "vision_config" in read_object(path)


CLIP_FOLDER = FolderKind(
    description="folder of clip-vit-large-patch14 (config.json with a vision_config, weights)", matches=_is_clip
)
ARCHIVE_PART = PublishedPart(name="archive", files=("clip/ViT-L-14.pt", "ViT-L-14.pt"), is_optional=True)
FOLDER_PART = PublishedPart(
    name="vision",
    keys=Keys(
        wanted=r"vision_model\.(?!embeddings\.position_ids).+|visual_projection\.weight",
        unused=r"text_model\..+|text_projection\.weight|logit_scale|vision_model\.embeddings\.position_ids",
    ),
    folder=CLIP_FOLDER,
    is_optional=True,
)
"""The parts that `read_clip` reads, of which one is enough."""


def read_clip(
    model: PublishedModel, paths: Mapping[str, Path], *, ignored: Sequence[str]
) -> tuple[ClipVisionConfig, dict[str, Tensor]]:
    """Return the sizes and the tensors of the vision tower and its projection, under Hugging Face's names.

    Args:
        model: has the parts `ARCHIVE_PART` and `FOLDER_PART`.
        paths: of its parts.
        ignored: keys of the folder that the user knows to be harmless.

    Raises:
        WeightsError: there is neither part, a file is damaged or of another kind of model, or the two are of different
            CLIPs.
    """
    folder, archive = paths.get(FOLDER_PART.name), paths.get(ARCHIVE_PART.name)
    if folder is None:
        if archive is None:
            raise WeightsError(
                f"There is neither {ARCHIVE_PART.files[0]} nor a {CLIP_FOLDER.description}; download one, or name it "
                "with --part archive=FILE or --part vision=FOLDER."
            )
        tensors = _complete(read_openai_clip(archive), archive)
        return openai_clip_sizes(archive, tensors, num_heads=None), tensors
    sizes = read_clip_config(folder, model=model.name)
    tensors = _complete(model.read(FOLDER_PART.name, paths, ignored=ignored), folder)
    if archive is not None:
        of_archive = _complete(read_openai_clip(archive), archive)
        if openai_clip_sizes(archive, of_archive, num_heads=sizes.num_heads) != sizes:
            raise _disagree(archive, folder, "sizes")
        for key in sorted(of_archive.keys() | tensors.keys()):
            if not (key in of_archive and key in tensors and _are_equal(of_archive[key], tensors[key])):
                raise _disagree(archive, folder, key)
        tensors = of_archive
    return sizes, tensors


def read_clip_config(folder: Path, *, model: str) -> ClipVisionConfig:
    """Return the sizes of the vision tower in the folder's `config.json`.

    Args:
        folder: of a CLIP.
        model: the name of the model that needs it, for error messages.

    Raises:
        WeightsError: there is no such file, or it does not describe a CLIP of OpenAI's.
    """
    values = read_object(folder / "config.json")
    try:
        sizes = clip_sizes(values["vision_config"])
        activation = values["vision_config"].get("hidden_act", OPENAI_ACTIVATION)
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"The config.json of {folder} lacks {error}; it is not CLIP's.") from error
    except ValueError as error:
        raise WeightsError(f"{folder} is another CLIP than {model}'s: {error}.") from error
    if activation != OPENAI_ACTIVATION:
        raise WeightsError(f"{folder} is another CLIP than {model}'s: its activation is {activation}.")
    return sizes


def check_depth(tensors: Mapping[str, Tensor], sizes: ClipVisionConfig, *, prefix: str, folder: Path) -> None:
    """Check that a published vision tower has exactly as many layers as its sizes say, also those that no family uses.

    Args:
        tensors: of the tower, and perhaps others.
        sizes: from its `config.json`.
        prefix: of the tower's keys.
        folder: that has the tensors, for the error message.

    Raises:
        WeightsError: it has more or fewer.
    """
    pattern = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\..+")
    layers = {int(found[1]) for key in tensors if (found := pattern.fullmatch(key))}
    if layers != set(range(sizes.depth)):
        raise WeightsError(
            f"{folder} has a vision tower of {len(layers)} layers, but its config.json names {sizes.depth}; one of "
            "them is damaged or another model's."
        )


def _complete(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors if they have CLIP's projection, from which the width of its embeddings follows."""
    if _PROJECTION not in tensors or tensors[_PROJECTION].ndim != 2:
        raise WeightsError(f"{path.name} lacks {_PROJECTION}. It is not a whole CLIP.")
    return tensors


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; OpenAI's are in 16 bits, and a folder may hold them in 32."""
    return torch.equal(one.float(), other.float())


def _disagree(archive: Path, folder: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{archive.name} and {folder.name} are different CLIPs: they differ in {what}. One is damaged or another "
        "model's; download both again, or keep only the right one."
    )
