"""Answers without a server: from Python, from the command line, and by the example."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.engine.sampling_params import SamplingParams
from model.families import load_family
from model.offline import Offline, watch
from model.text.conversation import Conversation, Turn
from tests.sound_clips import write_clip

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


@pytest.mark.parametrize(
    "name", ["imagebind-llm", "video-llama", "video-llava", "vtimellm", "videochat", "video-chatgpt"]
)
def test_a_file_of_one_picture_and_sound_is_seen_and_heard(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "one.mp4", video_seconds=0.1, sound_seconds=5.0)
    family = load_family(name)
    assert family.inputs is not None
    clip, encoded = watch(family, path)
    assert set(clip.frame_indices) == {0}
    assert ("audio" in clip.parts) == (family.inputs.sound is not None)
    offline = Offline(family, max_num_seqs=1)
    question = Conversation(clips=(clip,), turns=(Turn(role="user", text="What is it?"),))
    offline.add("one", question, [encoded], SamplingParams(max_tokens=3, ignore_eos=True))
    assert sum(len(output.token_ids) for output in offline.outputs()) == 3


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
