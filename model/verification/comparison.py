"""Compares what a model computed with a reference, whatever the family; knows tolerances, prints nothing."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.quantization import Quantization
from model.verification.stage import Claim, Finding, Stage

TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Of the largest expected value. float32: five times the noise of the worst reference, far below every mistake
tried on them. 16 bits: some three times the worst that was measured on the references; a mistake may hide in it."""
INT8_TOLERANCE = 0.15
"""The same for what a language model says whose weights are in 8 bits: three times the worst measured. In 4 bits the
references, of a few dozen values a row, differ by 0.2 to 0.8, with the wrong weights by 0.9 and more: too near."""

Verdict = Literal["pass", "fail", "shown", "absent", "new"]
"""`shown`: nothing to judge by. `absent`: the reference has what the model did not compute. `new`: no reference."""


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
        """Whether the verification has failed."""
        return self.verdict in {"fail", "absent"}


class Comparison:
    """Goes through findings as they come; keeps their tensors for whoever wants to write them."""

    def __init__(
        self, expected: Mapping[str, Tensor] | None, dtype: torch.dtype, quantization: Quantization | None = None
    ) -> None:
        """Compare with the tensors of a reference; None: compare no tensor.

        Args:
            expected: by name.
            dtype: what the model computed in.
            quantization: of the language model's weights.
        """
        self.tensors: dict[str, Tensor] = {}
        self._expected = expected
        self._tolerance = TOLERANCES[dtype]
        self._quantization = quantization
        self._judges_choices = dtype == torch.float32 and quantization is None

    def rows(self, findings: Iterable[Finding]) -> Iterator[Row]:
        """A row for each finding, then one for each tensor of the reference that none was for."""
        for finding in findings:
            if isinstance(finding, Claim):
                yield self._of_claim(finding)
            elif self._expected is None:
                self._keep(finding)
                yield Row(name=finding.name, verdict="new", note=_shape(finding.tensor))
            elif finding.name in self._expected:
                self._keep(finding)
                yield self._of_stage(finding, self._expected[finding.name])
        for name in sorted((self._expected or {}).keys() - self.tensors.keys()):
            yield Row(name=name, verdict="absent", note="the reference has it, this model did not compute it")

    def _keep(self, stage: Stage) -> None:
        kept = torch.float32 if stage.tensor.is_floating_point() else stage.tensor.dtype
        # Copied, since two stages may be the same tensor, which a safetensors file cannot hold.
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
        if not expected.is_floating_point():
            return self._of_ids(stage, got, expected)
        note = ""
        if stage.follows is not None:
            got, expected, note = self._while_equal(stage.follows, got, expected)
        if got.shape != expected.shape:
            return Row(name=stage.name, verdict="fail", note=f"{_shape(got)}, not {_shape(expected)}")
        scale = float(expected.abs().max())
        error = float((got - expected).abs().max())
        limit, told = self._limit(stage)
        if limit is None and math.isfinite(error):
            verdict: Verdict = "shown"
        else:
            is_near = error <= (limit or 0.0) * scale  # false for NaN
            verdict = "pass" if is_near else self._if_differs(stage.is_choice)
        note = ", ".join(filter(None, (note, told)))
        return Row(name=stage.name, verdict=verdict, error=error, scale=scale, note=note)

    def _limit(self, stage: Stage) -> tuple[float | None, str]:
        """What share of the largest expected value is near, None where none can be said; and a word about it."""
        if self._quantization is not None and stage.is_said:
            if self._quantization == "int4":
                return None, "int4: expected to differ"
            return INT8_TOLERANCE, f"int8: expected within {INT8_TOLERANCE:g} of the largest"
        rounding = torch.finfo(stage.tensor.dtype).eps if stage.tensor.dtype != torch.float32 else 0.0
        return max(self._tolerance, rounding), ""

    def _of_ids(self, stage: Stage, got: Tensor, expected: Tensor) -> Row:
        if torch.equal(got, expected):
            return Row(name=stage.name, verdict="pass", note=f"{len(got)} equal")
        note = f"the first {_num_equal(got, expected)} of {len(expected)} equal"
        return Row(name=stage.name, verdict=self._if_differs(stage.is_choice), note=note)

    def _while_equal(self, follows: str, got: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, str]:
        """The rows that both computed after the same tokens."""
        assert self._expected is not None
        ids = self._expected.get(follows)
        if self._judges_choices or ids is None:
            return got, expected, ""
        num_rows = min(_num_equal(self.tensors[follows], ids) + 1, len(got), len(expected))
        return got[:num_rows], expected[:num_rows], f"{num_rows} of {len(expected)} rows"

    def _if_differs(self, is_choice: bool) -> Verdict:  # noqa: FBT001
        return "shown" if is_choice and not self._judges_choices else "fail"


def _num_equal(got: Tensor, expected: Tensor) -> int:
    pairs = zip(got.tolist(), expected.tolist(), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
