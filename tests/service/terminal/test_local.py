"""`--local` runs the model in this process, without a service."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.commands.demo import SAMPLE
from service.commands.main import app
from service.terminal.local import LocalChat
from tests.talkative import talkative_checkpoint


def reeltalk(*arguments: str | Path, typed: str = "") -> Result:
    # No server listens at this address, so a request to a service would fail.
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], input=typed, env={"REELTALK_URL": "http://127.0.0.1:9"}
    )


def test_a_question_is_answered_correctly() -> None:
    done = reeltalk("ask", SAMPLE, "Which way does the circle move?", "--local")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "The red circle moves right.\n", "")


def test_an_answer_is_a_document_with_json() -> None:
    done = reeltalk(
        "ask", SAMPLE, "-", "--local", "--json", "--frames", "4", "--max-tokens", "2", typed="How big is it?\n"
    )
    message = json.loads(done.stdout)["message"]
    assert (message["role"], message["finish_reason"], message["usage"]["completion_tokens"]) == (
        "assistant",
        "length",
        2,
    )
    assert [round(frame["timestamp"], 2) for frame in message["frames"][0]["frames"]] == [0.46, 1.46, 2.46, 3.42]


def test_a_conversation_includes_its_earlier_turns() -> None:
    done = reeltalk("chat", SAMPLE, "--local", typed="Which way does the circle move?\nHow big is it?\n")
    assert done.stdout == "The red circle moves right.\nThe red circle is large.\n"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ([__file__, "What?"], 4, "The file is not a video of a known kind."),
        ([SAMPLE, "What?", "--family", "nonsense"], 2, "nonsense"),
        ([SAMPLE, "What?", "--checkpoint", "/nowhere"], 2, "/nowhere"),
        ([SAMPLE, "What?", "--start", "3", "--end", "2"], 2, "end must be later than start."),
        ([SAMPLE, "word " * 5000], 4, "token"),
        ([SAMPLE, "What?", "--device", "cuda:63"], 2, "There is no device cuda:63;"),
        (["What?"], 2, "The family videochat answers questions about a video; name a VIDEO."),
    ],
    ids=["text", "family", "checkpoint", "frames", "long", "device", "no video"],
)
def test_an_error_is_reported_in_one_sentence(arguments: list[str | Path], status: int, sentence: str) -> None:
    done = reeltalk("ask", *arguments, "--local")
    assert done.exit_code == status
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_model_of_a_local_chat_is_shown_and_cannot_be_changed() -> None:
    done = reeltalk("chat", SAMPLE, "--local", typed="/model\n/model vtimellm\n")
    assert done.exit_code == 2
    assert "With --local the model cannot be changed to vtimellm; start another chat." in done.stderr


def local_talk(checkpoint: Path, **fields: Any) -> LocalChat:
    return LocalChat(
        SAMPLE,
        family="videochat",
        checkpoint=checkpoint,
        device="cpu",
        frames={},
        fields=fields,
        show=lambda what, done=0, total=None: None,
    )


def test_ctrl_c_ends_an_answer_between_two_steps_and_the_conversation_goes_on(tmp_path: Path) -> None:
    chat = local_talk(talkative_checkpoint(tmp_path / "checkpoint"), max_tokens=400)
    text = ""
    with pytest.raises(KeyboardInterrupt):
        for number, event in enumerate(chat.ask("What?")):
            text += event.data["text"]
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert text
    assert chat.answer()["message"] == {"role": "assistant", "content": text}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    *_, last = chat.ask("And then?")
    assert last.name == "done"
    assert last.data["finish_reason"] == "length"
