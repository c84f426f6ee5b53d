"""One verification: a folder, its family's stages, its reference, and the tensors that came out."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.folder import read_record, recompute_digest
from model.families import family_module
from model.quantization import Quantization
from model.verification.comparison import Comparison, Row
from model.verification.stage import Claim
from model.weights import WeightsError, read_safetensors

EXPECTED = "expected.safetensors"
INPUTS = ("inputs.safetensors", "clip.mp4")


class Verification:
    """A model in a folder against the reference beside it."""

    def __init__(
        self, folder: Path, *, family: str, dtype: str, device: str, quantization: Quantization | None
    ) -> None:
        """Take a folder's reference; nothing runs yet.

        Raises:
            UnknownFamily: there is no such family.
            WeightsError: the family offers no stages, the reference is damaged, or the device is not there.
        """
        self._folder, self._dtype, self._device = folder, getattr(torch, dtype), _device(device)
        self._quantization: Quantization | None = quantization
        self._stages = getattr(family_module(family), "verify_stages", None)
        if self._stages is None:
            raise WeightsError(f"The family {family} offers no stages to verify yet.")
        self.has_reference = (folder / EXPECTED).is_file()
        expected = read_safetensors(folder / EXPECTED) if self.has_reference else None
        self._comparison = Comparison(expected, self._dtype, quantization)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Computed so far, float32 or ids; where there is a reference, only those that it has."""
        return self._comparison.tensors

    def rows(self) -> Iterator[Row]:
        """Run the model; a row comes as soon as its stage is known.

        A folder that `reeltalk convert` wrote has its digest checked too, and nothing else where no inputs were
        laid beside it.

        Raises:
            WeightsError, TokenizerError: the folder is incomplete, damaged or another model's, or the library that
                quantises is not installed.
        """
        # cuDNN computes float32 convolutions in TF32 unless told otherwise: ten bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
        assert self._stages is not None
        record = read_record(self._folder)
        if record is not None:
            digest = Claim(name="digest", got=recompute_digest(self._folder), expected=record["digest"])
            yield from Comparison(None, self._dtype).rows([digest])
        if record is None or any((self._folder / name).is_file() for name in INPUTS):
            stages = self._stages(self._folder, device=self._device, dtype=self._dtype, quantization=self._quantization)
            yield from self._comparison.rows(stages)

    def write(self, path: Path) -> None:
        """Write the tensors to a safetensors file.

        Raises:
            WeightsError: the place cannot be written to.
        """
        try:
            save_file(self.tensors, path)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} cannot be written.") from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WeightsError(f"There is no device {name!r} here.") from error
    return device
