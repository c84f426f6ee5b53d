"""Answers without a server: from Python, from the command line, and by the example."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "service" / "web" / "samples" / "shapes.mp4"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_answers_follow_up_questions() -> None:
    done = run("-m", "model", str(SAMPLE), "What colour is the circle?", "Which way does it move?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The circle is red.\nThe red circle moves right.\n"


@pytest.mark.parametrize(("name", "sentence"), [("pyproject.toml", "video"), ("absent.mp4", "absent.mp4")])
def test_a_file_that_is_not_a_video_is_refused_in_one_sentence(name: str, sentence: str) -> None:
    done = run("-m", "model", name, "What is this?")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("reeltalk: ")
    assert sentence in done.stderr


def test_a_family_without_videos_answers_questions_alone() -> None:
    done = run("-m", "model", "--family", "mobillama", "Hello?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--family", "mobillama", str(SAMPLE), "What is this?"), "the family mobillama sees no videos; leave out"),
        (("What is this?",), "the family videochat answers questions about a video; name a file and a question"),
    ],
)
def test_a_video_too_many_or_too_few_is_refused(arguments: tuple[str, ...], sentence: str) -> None:
    done = run("-m", "model", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_the_example_prints_a_right_answer() -> None:
    done = run("examples/offline.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "How many objects are there? There are two objects.",
        "Which way does the circle move? The red circle moves right.",
        "Is there a star? No, there is no star.",
    ]
