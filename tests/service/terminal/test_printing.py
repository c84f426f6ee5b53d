"""What is printed can steer no terminal, and goes where it belongs."""

import json
import sys

import pytest

from service.terminal.failures import Exit, Failure
from service.terminal.printing import failures_told, harmless, numbers_of, say_table


def test_no_text_steers_a_terminal() -> None:
    assert harmless("a\x1b[31mb\x07\x9b2Jc\td\ne\r") == "a[31mb2Jc\td\ne"


def test_a_failure_is_a_sentence_on_stderr_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, failures_told(as_json=False):
        raise Failure(Exit.NOT_FOUND, "There is no such video.", code="video_not_found")
    assert ended.value.code == 6
    assert capsys.readouterr() == ("", "reeltalk: There is no such video.\n")


def test_with_json_a_failure_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), failures_told(as_json=True):
        raise Failure(Exit.NOT_NOW, "Busy.", code="overloaded")
    told = capsys.readouterr()
    assert json.loads(told.out) == {"error": {"message": "Busy.", "code": "overloaded"}}
    assert told.err == "reeltalk: Busy.\n"


def test_ctrl_c_is_a_status_of_its_own() -> None:
    with pytest.raises(SystemExit) as ended, failures_told(as_json=False):
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_a_table_is_never_cut_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    say_table(("id", "name"), [("vid_1", "x" * 300), ("vid_22", "\x1b[2Jy")])
    assert capsys.readouterr().out.splitlines() == ["id      name", "vid_1   " + "x" * 300, "vid_22  [2Jy"]


def test_the_figures_of_an_answer_are_told_in_a_few_words() -> None:
    done = {"usage": {"completion_tokens": 7}, "timings": {"time_to_first_token_ms": 9.6}, "finish_reason": "stop"}
    assert numbers_of(done) == "7 tokens, the first after 10 ms, stop"
    assert numbers_of({"finish_reason": "abort"}) == "0 tokens, abort"
    assert not sys.stderr.isatty(), "the tests above count on it"
