"""Which findings pass, fail or are only shown."""

import pytest
import torch
from torch import Tensor, nn

from model.quantization import Quantization
from model.verification.comparison import Comparison, Row
from model.verification.stage import Claim, Finding, Omission, Stage, recorded

EXPECTED = {
    "hidden": torch.tensor([[10.0, -2.0]]),
    "ids": torch.tensor([5, 6, 7]),
    "logits": torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 2.0]]),
}


def rows(*findings: Finding, dtype: torch.dtype = torch.float32, quantization: Quantization | None = None) -> list[Row]:
    return list(Comparison(EXPECTED, dtype, quantization).rows(findings))


def row(finding: Finding, dtype: torch.dtype = torch.float32) -> Row:
    return rows(finding, dtype=dtype)[0]


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [(torch.float32, 1.9e-4, 2.1e-4), (torch.float16, 0.09, 0.11), (torch.bfloat16, 0.79, 0.81)],
)
def test_a_tensor_passes_up_to_a_share_of_the_largest_value(dtype: torch.dtype, near: float, far: float) -> None:
    off = torch.tensor([[0.0, 1.0]])
    passed = row(Stage(name="hidden", tensor=EXPECTED["hidden"] + near * off), dtype)
    assert (passed.verdict, passed.scale) == ("pass", 10.0)
    assert passed.error == pytest.approx(near, rel=0.01)
    assert row(Stage(name="hidden", tensor=EXPECTED["hidden"] + far * off), dtype).verdict == "fail"


@pytest.mark.parametrize("tensor", [torch.full((1, 2), torch.nan), torch.ones(2, 1), torch.ones(2)])
def test_nan_and_another_shape_fail(tensor: Tensor) -> None:
    assert row(Stage(name="hidden", tensor=tensor)).is_bad


def test_a_stage_that_was_not_computed_fails() -> None:
    found = rows(Stage(name="hidden", tensor=EXPECTED["hidden"]))
    assert [(row.name, row.verdict) for row in found[1:]] == [("ids", "absent"), ("logits", "absent")]
    assert found[1].is_bad


def test_an_omitted_stage_of_the_reference_is_shown_with_its_reason_and_does_not_fail() -> None:
    found = rows(Omission(name="hidden", reason="no tower"), Omission(name="more", reason="no tower"))
    assert [(row.name, row.verdict) for row in found] == [
        ("hidden", "omitted"),
        ("ids", "absent"),
        ("logits", "absent"),
    ]
    assert (found[0].note, found[0].is_bad) == ("no tower", False)


def test_a_stage_that_is_not_in_the_reference_is_skipped() -> None:
    comparison = Comparison(EXPECTED, torch.float32)
    found = list(comparison.rows([Stage(name="more", tensor=torch.ones(1))]))
    assert "more" not in {row.name for row in found} | comparison.tensors.keys()


def test_without_a_reference_all_tensors_are_kept_and_none_fails() -> None:
    comparison = Comparison(None, torch.float16)
    same = torch.ones(2, dtype=torch.float16)
    found = list(
        comparison.rows(
            [Stage(name="a", tensor=same), Stage(name="b", tensor=same), Stage(name="ids", tensor=EXPECTED["ids"])]
        )
    )
    assert {row.verdict for row in found} == {"new"}
    assert {name: tensor.dtype for name, tensor in comparison.tensors.items()} == {
        "a": torch.float32,
        "b": torch.float32,
        "ids": torch.int64,
    }


def test_token_ids_are_equal_in_float32_and_shown_in_16_bits() -> None:
    other = Stage(name="ids", tensor=torch.tensor([5, 6, 9, 9]), is_choice=True)
    assert row(other).verdict == "fail"
    shown = row(other, torch.float16)
    assert (shown.verdict, shown.note) == ("shown", "the first 2 of 3 equal")


def test_logits_in_16_bits_count_while_the_answers_are_the_same() -> None:
    ids = Stage(name="ids", tensor=torch.tensor([5, 9, 9]), is_choice=True)
    after = EXPECTED["logits"] + torch.tensor([[0.0], [0.0], [3.0]])
    logits = Stage(name="logits", tensor=after, follows="ids")
    assert rows(ids, logits)[1].verdict == "fail"
    judged = rows(ids, logits, dtype=torch.float16)[1]
    assert (judged.verdict, judged.note) == ("pass", "2 of 3 rows")
    before = EXPECTED["logits"] + torch.tensor([[0.0], [3.0], [0.0]])
    assert rows(ids, Stage(name="logits", tensor=before, follows="ids"), dtype=torch.float16)[1].verdict == "fail"


def test_language_model_stages_have_a_tolerance_in_8_bits_and_are_only_shown_in_4() -> None:
    ids = Stage(name="ids", tensor=torch.tensor([5, 6, 9]), is_choice=True, is_of_language_model=True)
    for error, int8 in ((0.5, "pass"), (0.7, "fail")):  # of 4, the largest
        logits = Stage(name="logits", tensor=EXPECTED["logits"] + error, follows="ids", is_of_language_model=True)
        assert [row.verdict for row in rows(ids, logits, quantization="int8")[:2]] == ["shown", int8]
        assert [row.verdict for row in rows(ids, logits, quantization="int4")[:2]] == ["shown", "shown"]
        assert [row.verdict for row in rows(ids, logits)[:2]] == ["fail", "fail"]
    lost = Stage(name="logits", tensor=EXPECTED["logits"] * torch.nan, is_of_language_model=True)
    assert rows(lost, quantization="int4")[0].verdict == "fail"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantisation_does_not_change_the_tolerance_of_earlier_stages(kind: Quantization) -> None:
    hidden = Stage(name="hidden", tensor=EXPECTED["hidden"] + 2.1e-4)
    assert rows(hidden, quantization=kind)[0].verdict == "fail"


def test_a_claim_that_differs_shows_both_values() -> None:
    assert row(Claim(name="text", got="a", expected="a")).verdict == "pass"
    differs = row(Claim(name="text", got="a", expected="b"))
    assert (differs.verdict, differs.note) == ("fail", "'a', not 'b'")
    assert row(Claim(name="text", got="a", expected=None)).verdict == "new"
    assert row(Claim(name="text", got="a", expected="b", is_choice=True), torch.bfloat16).verdict == "shown"


def test_outputs_are_recorded_within_the_block_only() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with recorded({"first": network[0]}) as outputs:
        network(torch.ones(1, 2))
    kept = outputs["first"]
    network(torch.zeros(1, 2))
    assert kept.shape == (1, 3)
    assert outputs["first"] is kept
