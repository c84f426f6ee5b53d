"""Compares computed tensors with reference tensors, for any family, within tolerances by dtype."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.quantization import Quantization
from model.verification.stage import Claim, Finding, Omission, Stage

TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Tolerated differences, relative to the largest expected value.

float32: five times the noise of the worst reference, and far below the effect of every mistake that was tried. 16 bits:
about three times the largest difference measured on the references; a small mistake can stay undetected."""
INT8_TOLERANCE = 0.15
"""The tolerance for a language model with 8-bit weights: three times the largest difference measured.

There is none for 4-bit weights: the references, of a few dozen values per row, differ by 0.2 to 0.8, and with wrong
weights by 0.9 and more, which is too close to tell apart."""

Verdict = Literal["pass", "fail", "shown", "absent", "omitted", "new"]
"""`shown`: differs as rounding may. `absent`: in the reference, but not computed. `omitted`: as `absent`, because the
folder lacks weights that serving does not need. `new`: there is no reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    verdict: Verdict
    error: float | None = None
    """max |got - expected|."""
    scale: float | None = None
    """max |expected|."""
    note: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether this row fails the verification."""
        return self.verdict in {"fail", "absent"}


class Comparison:
    """Compares findings one by one, and keeps their tensors so that they can be written to a file."""

    def __init__(
        self, expected: Mapping[str, Tensor] | None, dtype: torch.dtype, quantization: Quantization | None = None
    ) -> None:
        """Set up a comparison.

        Args:
            expected: reference tensors by name; None if there is no reference.
            dtype: what the model computes in.
            quantization: of the language model's weights.
        """
        self.tensors: dict[str, Tensor] = {}
        self._expected = expected
        self._tolerance = TOLERANCES[dtype]
        self._quantization = quantization
        self._judges_choices = dtype == torch.float32 and quantization is None

    def rows(self, findings: Iterable[Finding]) -> Iterator[Row]:
        """Yield a row for each finding that the reference has, then one for each reference tensor without a finding."""
        omitted: set[str] = set()
        for finding in findings:
            if isinstance(finding, Claim):
                yield self._of_claim(finding)
            elif isinstance(finding, Omission):
                if finding.name in (self._expected or {}):
                    omitted.add(finding.name)
                    yield Row(name=finding.name, verdict="omitted", note=finding.reason)
            elif self._expected is None:
                self._keep(finding)
                yield Row(name=finding.name, verdict="new", note=_shape(finding.tensor))
            elif finding.name in self._expected:
                self._keep(finding)
                yield self._of_stage(finding, self._expected[finding.name])
        for name in sorted((self._expected or {}).keys() - self.tensors.keys() - omitted):
            yield Row(name=name, verdict="absent", note="in the reference, but not computed")

    def _keep(self, stage: Stage) -> None:
        kept = torch.float32 if stage.tensor.is_floating_point() else stage.tensor.dtype
        # Copied, because two stages may share memory, which a safetensors file does not allow.
        self.tensors[stage.name] = stage.tensor.detach().to("cpu", kept, copy=True).contiguous()

    def _of_claim(self, claim: Claim) -> Row:
        if claim.expected is None:
            return Row(name=claim.name, verdict="new", note=_brief(claim.got))
        if claim.got == claim.expected:
            return Row(name=claim.name, verdict="pass", note="equal")
        note = f"{_brief(claim.got)}, not {_brief(claim.expected)}"
        return Row(name=claim.name, verdict=self._if_differs(claim.is_choice), note=note)

    def _of_stage(self, stage: Stage, expected: Tensor) -> Row:
        got = self.tensors[stage.name]
        if got.is_floating_point() != expected.is_floating_point():
            return Row(name=stage.name, verdict="fail", note=f"{got.dtype}, not {expected.dtype}")
        if not expected.is_floating_point():
            return self._of_ids(stage, got, expected)
        note = ""
        if stage.follows is not None:
            got, expected, note = self._while_equal(stage.follows, got, expected)
        if got.shape != expected.shape:
            return Row(name=stage.name, verdict="fail", note=f"{_shape(got)}, not {_shape(expected)}")
        if expected.numel() == 0:
            return Row(name=stage.name, verdict="pass", note="empty")
        scale = float(expected.abs().max())
        error = float((got - expected).abs().max())
        limit, reason = self._limit(stage)
        if limit is None and math.isfinite(error):
            verdict: Verdict = "shown"
        else:
            is_near = error <= (limit or 0.0) * scale  # false for NaN
            verdict = "pass" if is_near else self._if_differs(stage.is_choice)
        note = ", ".join(filter(None, (note, reason)))
        return Row(name=stage.name, verdict=verdict, error=error, scale=scale, note=note)

    def _limit(self, stage: Stage) -> tuple[float | None, str]:
        """Return the tolerance relative to the largest expected value, or None if there is none, and the reason."""
        if self._quantization is not None and stage.is_of_language_model:
            if self._quantization == "int4":
                return None, "int4: expected to differ"
            return INT8_TOLERANCE, f"int8: expected within {INT8_TOLERANCE:g} of the largest"
        rounding = torch.finfo(stage.tensor.dtype).eps if stage.tensor.dtype != torch.float32 else 0.0
        return max(self._tolerance, stage.tolerance, rounding), ""

    def _of_ids(self, stage: Stage, got: Tensor, expected: Tensor) -> Row:
        if torch.equal(got, expected):
            return Row(name=stage.name, verdict="pass", note=f"{got.numel()} equal")
        if got.ndim != expected.ndim:
            return Row(name=stage.name, verdict="fail", note=f"{_shape(got)}, not {_shape(expected)}")
        note = f"the first {_num_equal(got, expected)} of {expected.numel()} equal"
        return Row(name=stage.name, verdict=self._if_differs(stage.is_choice), note=note)

    def _while_equal(self, follows: str, got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, str]:
        """Return the rows that both computed after the same tokens, and a note about their number."""
        assert self._expected is not None
        ids = self._expected.get(follows)
        if self._judges_choices or ids is None:
            return got, expected, ""
        num_rows = min(_num_equal(self.tensors[follows], ids) + 1, len(got), len(expected))
        return got[:num_rows], expected[:num_rows], f"{num_rows} of {len(expected)} rows"

    def _if_differs(self, is_choice: bool) -> Verdict:  # noqa: FBT001
        return "shown" if is_choice and not self._judges_choices else "fail"


def _num_equal(got: Tensor, expected: Tensor) -> int:
    pairs = zip(got.flatten().tolist(), expected.flatten().tolist(), strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(got.numel(), expected.numel()))


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
