"""Printed text contains no control characters; results go to stdout and errors to stderr."""

import json
import sys

import pytest

from service.terminal.failures import Exit, Failure
from service.terminal.printing import (
    answer_figures,
    clock,
    exit_on_failure,
    moment_times,
    print_table,
    without_controls,
)


def test_control_characters_are_removed() -> None:
    assert without_controls("a\x1b[31mb\x07\x9b2Jc\td\ne\r") == "a[31mb2Jc\td\ne"


def test_a_failure_is_a_sentence_on_stderr_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_failure(as_json=False):
        raise Failure(Exit.NOT_FOUND, "There is no such video.", code="video_not_found")
    assert ended.value.code == 6
    assert capsys.readouterr() == ("", "reeltalk: There is no such video.\n")


def test_with_json_a_failure_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_on_failure(as_json=True):
        raise Failure(Exit.NOT_NOW, "Busy.", code="overloaded")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": {"message": "Busy.", "code": "overloaded"}}
    assert printed.err == "reeltalk: Busy.\n"


def test_ctrl_c_has_its_own_exit_status() -> None:
    with pytest.raises(SystemExit) as ended, exit_on_failure(as_json=False):
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_a_table_is_not_truncated_if_stdout_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id", "name"), [("vid_1", "x" * 300), ("vid_22", "\x1b[2Jy")])
    assert capsys.readouterr().out.splitlines() == ["id      name", "vid_1   " + "x" * 300, "vid_22  [2Jy"]


def test_the_figures_of_an_answer_are_described_in_a_few_words() -> None:
    done = {"usage": {"completion_tokens": 7}, "timings": {"time_to_first_token_ms": 9.6}, "finish_reason": "stop"}
    assert answer_figures(done) == "7 tokens, the first after 10 ms, stop"
    assert answer_figures({"finish_reason": "abort"}) == "0 tokens, abort"
    assert not sys.stderr.isatty(), "the tests above require it"


def test_a_time_of_a_video_is_in_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0, 12.9, 63.25, 3723)] == ["0:00", "0:12", "1:03", "1:02:03"]


def test_each_moment_of_an_answer_is_a_line_with_its_times_and_its_words() -> None:
    text = "From 17 to 34 and 50 to 99."
    moments = [
        {"video_id": "vid_1", "start": 12.2, "end": 18.1, "text_start": 0, "text_end": 13},
        {"video_id": "vid_1", "start": 30.0, "end": 61.0, "text_start": 18, "text_end": 26},
    ]
    assert moment_times(text, moments) == "0:12–0:18  From 17 to 34\n0:30–1:01  50 to 99"
    assert moment_times(text, []) == moment_times(text, None) == ""
