"""Ids are random and carry their kind; the id of a video depends on its tenant and content only."""

import re

from hypothesis import given
from hypothesis import strategies as st

from service.ids import new_id, video_id

SHA256 = "0123456789abcdef" * 4


def test_an_id_has_its_prefix_and_is_new() -> None:
    ids = {new_id("ses") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"ses_[0-9a-f]{32}", made) for made in ids)


def test_the_same_content_has_the_same_id() -> None:
    assert video_id("acme", SHA256) == video_id("acme", SHA256)
    assert re.fullmatch(r"vid_[0-9a-f]{32}", video_id("acme", SHA256))


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_another_tenant_or_other_content_has_another_id(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (video_id(*one) == video_id(*other)) == (one == other)


def test_the_name_of_a_tenant_is_separated_from_the_hash() -> None:
    assert video_id("acme:1", SHA256) != video_id("acme", "1:" + SHA256)
