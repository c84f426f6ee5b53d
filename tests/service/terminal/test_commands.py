"""The client commands import little, report errors in one sentence, and complete in three shells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.commands.demo import SAMPLE
from service.commands.main import app
from service.settings import load_settings

NOWHERE = "http://127.0.0.1:9"
VIDEO = "vid_" + "0" * 32
HEAVY = {"torch", "transformers", "numpy", "fastapi", "starlette", "uvicorn", "redis"}


def reeltalk(*arguments: str | Path, **environ: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ, prog_name="reeltalk")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["ask", str(SAMPLE), "What?", "--server", NOWHERE], 3), (["videos", "--server", NOWHERE], 3)],
    ids=["help", "ask", "videos"],
)
def test_the_client_commands_import_neither_server_code_nor_torch(arguments: list[str], status: int) -> None:
    script = (
        "import sys\nfrom service.commands.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print('status', end.code)\nprint(*sys.modules)"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *_, printed_status, modules = done.stdout.splitlines()
    loaded = {name.partition(".")[0] for name in modules.split()}
    assert printed_status == f"status {status}"
    assert {"service", "typer"} <= loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask", "nothing.mp4", "What?"], "There is no file nothing.mp4."),
        (["ask", "/", "What?"], "/ is a directory; name a file."),
        (["ask", SAMPLE], "Give a VIDEO and a QUESTION"),
        (["ask", SAMPLE, "  "], "The question is empty."),
        (["ask", SAMPLE, "What?", "--session", "ses_1"], "because a session has its video"),
        (["ask", "What?", "--session", "1"], "1 is not an id"),
        (
            ["ask", "What?", "--session", "ses_" + "0" * 32, "--frames", "4"],
            "cannot be changed in an existing",
        ),
        (["ask", "What?", "--session", "ses_" + "0" * 32, "--local"], "cannot be combined with --local"),
        (["ask", "vid_1/../../healthz", "What?"], "is not an id"),
        (["ask", SAMPLE, "What?", "--server", "nonsense"], "nonsense is not the address of a service"),
        (["ask", SAMPLE, "What?", "--local", "--device", "tpu"], "tpu is not a device"),
        (["ask", "What?", "--session", "ses_" + "0" * 32, "--model", "tiny"], "cannot be changed in an existing"),
        (["ask", SAMPLE, "What?", "--local", "--model", "tiny"], "--model cannot be combined with --local"),
        (["chat", "--local", "--model", "tiny"], "--model cannot be combined with --local"),
        (["chat", SAMPLE, "--model", "tiny", "--session", "ses_1"], "Name either a VIDEO"),
        (["chat"], "Name either a VIDEO"),
        (["chat", SAMPLE, "--session", "ses_1"], "Name either a VIDEO"),
        (["videos", "show", "1"], "1 is not an id"),
        (["sessions", "delete", VIDEO], "is not an id"),
        (["bench", SAMPLE, "--streams", "1,x"], "--streams must be numbers separated by commas"),
    ],
)
def test_wrong_usage_is_reported_in_one_sentence(arguments: list[str | Path], sentence: str) -> None:
    done = reeltalk(*arguments, REELTALK_URL=NOWHERE)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", SAMPLE, "What?"],
        ["ask", VIDEO, "What?"],
        ["ask", "https://example.org/a.mp4", "What?"],
        ["chat", SAMPLE],
        ["ask", "What?", "--model", "mobillama"],
        ["chat", "--model", "mobillama"],
        ["videos"],
        ["models"],
        ["sessions", "show", "ses_" + "0" * 32],
        ["videos", "delete", VIDEO],
        ["bench"],
    ],
    ids=str,
)
def test_an_unreachable_service_is_reported_in_one_sentence_and_as_json(arguments: list[str | Path]) -> None:
    done = reeltalk(*arguments, "--json", REELTALK_URL=NOWHERE)
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"reeltalk: No service responds at {NOWHERE}. Start one with `reeltalk serve`, or name one with --server."
    ]
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"


def test_the_service_accepts_the_variables_of_the_client_commands() -> None:
    assert load_settings(environ={"REELTALK_URL": NOWHERE, "REELTALK_API_KEY": "rtk_1"}) == load_settings(environ={})


def test_the_version_is_printed() -> None:
    assert reeltalk("--version").stdout.startswith("reeltalk 0.")


def test_the_help_names_every_command_and_the_exit_statuses() -> None:
    printed = reeltalk("--help").stdout
    for command in [
        "serve",
        "ask",
        "chat",
        "videos",
        "sessions",
        "models",
        "verify",
        "convert",
        "plan",
        "keys",
        "bench",
    ]:
        assert f"│ {command} " in printed
    assert "130" in reeltalk("ask", "--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_that_completes_commands(shell: str, tmp_path: Path) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "reeltalk"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.commands.main "$@"\n')
    command.chmod(0o755)
    complete = {
        "bash": "reeltalk --show-completion > script; . ./script; COMP_WORDS=(reeltalk vid); COMP_CWORD=1; "
        '_reeltalk_completion reeltalk; echo "${COMPREPLY[@]}"',
        "zsh": "autoload -Uz compinit; compinit -u -d dump; reeltalk --show-completion > script; . ./script; "
        '_arguments() { echo "$@" }; words=(reeltalk vid); CURRENT=2; ${_comps[reeltalk]}',
        "fish": 'reeltalk --show-completion > script; source script; complete -C "reeltalk vid"',
    }
    environ = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [found, "-c", complete[shell]],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "videos" in done.stdout, done.stdout + done.stderr
    assert "sessions" not in done.stdout
