"""Runs the verification of one model folder: its family's stages against the reference in the folder."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.folder import read_record, recompute_digest
from model.families import family_module, load_family
from model.family import Family
from model.quantization import Quantization
from model.text.tokenizer import TokenizerError
from model.verification.comparison import Comparison, Row
from model.verification.stage import Claim, Finding
from model.weights import WeightsError, read_safetensors

EXPECTED = "expected.safetensors"
INPUTS = ("inputs.safetensors", "clip.mp4", "dialogue.json")

_MISFITS = (RuntimeError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What computing with inputs of another model raises."""


class Verification:
    """Compares a model in a folder with the reference tensors in the same folder."""

    def __init__(
        self, folder: Path, *, family: str, dtype: str, device: str, quantization: Quantization | None
    ) -> None:
        """Read a folder's reference; the model is not loaded yet.

        Raises:
            UnknownFamily: there is no such family.
            WeightsError: the family has no stages to verify, the reference is damaged, or the device does not exist.
        """
        self._folder, self._dtype, self._device = folder, getattr(torch, dtype), _device(device)
        self._quantization: Quantization | None = quantization
        self._family = family
        self._verify_stages = getattr(family_module(family), "verify_stages", None)
        if self._verify_stages is None:
            raise WeightsError(f"The family {family} does not support verification yet.")
        self.has_reference = (folder / EXPECTED).is_file()
        expected = read_safetensors(folder / EXPECTED) if self.has_reference else None
        self._comparison = Comparison(expected, self._dtype, quantization)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors computed so far, float32 or ids; with a reference, only those that it contains."""
        return self._comparison.tensors

    def rows(self) -> Iterator[Row]:
        """Run the model, and yield a row as soon as its stage is computed.

        The digest of a folder that `reeltalk convert` wrote is checked too. Without inputs in such a folder, only the
        digest is checked.

        Raises:
            WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
                quantises is not installed.
        """
        # By default cuDNN computes float32 convolutions in TF32, with ten bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
        record = read_record(self._folder)
        if record is not None:
            digest = Claim(name="digest", got=recompute_digest(self._folder), expected=record["digest"])
            yield from Comparison(None, self._dtype).rows([digest])
        if record is None or any((self._folder / name).is_file() for name in INPUTS):
            loaded = load_family(
                self._family,
                checkpoint=self._folder,
                device=self._device,
                dtype=self._dtype,
                quantization=self._quantization,
            )
            yield from self._comparison.rows(self._stages(loaded))

    def _stages(self, family: Family) -> Iterator[Finding]:
        """Yield the findings of the family.

        Raises:
            WeightsError: the inputs are damaged, or of another model, e.g. pixels of another size.
        """
        assert self._verify_stages is not None
        try:
            yield from self._verify_stages(family, self._folder)
        except (WeightsError, TokenizerError, torch.OutOfMemoryError):
            raise
        # The networks do not check the shapes and ids of their inputs; wrong ones raise these errors.
        except _MISFITS as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WeightsError(f"The inputs in {self._folder} do not fit the model ({reason}).") from error

    def write(self, path: Path) -> None:
        """Write the computed tensors to a safetensors file.

        Raises:
            WeightsError: the file cannot be written.
        """
        try:
            save_file(self.tensors, path)
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be written.") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WeightsError(f"There is no device {name!r} here.") from error
    return device
