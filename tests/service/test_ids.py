"""Ids say what they are, nobody guesses them, and the same bytes have the same one everywhere."""

import re

from hypothesis import given
from hypothesis import strategies as st

from service.ids import new_id, video_id

SHA256 = "0123456789abcdef" * 4


def test_an_id_says_what_it_is_and_is_new() -> None:
    ids = {new_id("ses") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"ses_[0-9a-f]{32}", made) for made in ids)


def test_a_video_has_the_same_id_wherever_it_is_uploaded() -> None:
    assert video_id("acme", SHA256) == video_id("acme", SHA256)
    assert re.fullmatch(r"vid_[0-9a-f]{32}", video_id("acme", SHA256))


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_no_other_tenant_and_no_other_bytes_have_it(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (video_id(*one) == video_id(*other)) == (one == other)


def test_a_tenant_s_name_cannot_run_into_the_hash() -> None:
    assert video_id("acme:1", SHA256) != video_id("acme", "1:" + SHA256)
