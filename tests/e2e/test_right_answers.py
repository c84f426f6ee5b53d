"""The default model answers correctly over HTTP: about samples, new clips, and unknown content."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.published import clip
from tests.running import RunningService, running
from training.clips import Format, write_pictures, write_scene
from training.dialogues import UNKNOWN, draw_dialogue
from training.scenes import draw_scene

SAMPLES = Path(__file__).parents[2] / "service" / "web" / "samples"
TALKS = {
    "shapes.mp4": [
        ("How many objects are there?", "There are two objects."),
        ("Which way does the circle move?", "The red circle moves right."),
        ("and the square?", "The blue square moves left."),
        ("WHAT SIZE IS IT", "The blue square is small."),
        ("is there a green star", "No, there is no green star."),
        (
            "What happens in the video?",
            "There are two objects: a large red circle that moves right, and a small blue square that moves left.",
        ),
    ],
    "arrival.mp4": [
        ("What is the colour of the star?", "The star is green."),
        ("Does it move?", "The green star stays still."),
        ("when does the triangle appear", "The yellow triangle appears at 2.6 seconds."),
        ("What happens first?", "First, the yellow triangle appears."),
        ("Who won the match?", UNKNOWN),
    ],
    "farewell.webm": [
        ("how many things do you see?", "There are three objects."),
        ("Which object moves up?", "The purple circle moves up."),
        ("When does it vanish?", "The purple circle vanishes at 5.4 seconds."),
        ("What shape is the white object?", "The white object is a star."),
        ("What does not move?", "The white star stays still."),
    ],
}
QUESTIONS = (
    "Describe the video.",
    "How many objects are there?",
    "What colour is the circle?",
    "Which way does the red one move?",
    "what moves left",
    "What shape is the small object?",
    "When does the square vanish?",
    "How are you?",
)


def talk(service: RunningService, video_id: str, questions: Sequence[str]) -> list[str]:
    """The answers to several questions in one session, with default parameters."""
    session_id = service.open_session(video_id)
    answers = []
    for question in questions:
        reply = service.client.post(f"/v1/sessions/{session_id}/messages", json={"content": question})
        assert reply.status_code == 200, reply.text
        answers.append(reply.json()["content"])
    return answers


@pytest.mark.parametrize("name", TALKS)
def test_answers_about_a_sample_are_correct(service: RunningService, name: str) -> None:
    video_id = service.upload(SAMPLES / name)["id"]
    questions = [question for question, _ in TALKS[name]]
    assert talk(service, video_id, questions) == [answer for _, answer in TALKS[name]]


def test_answers_about_new_clips_are_correct(service: RunningService, tmp_path: Path) -> None:
    """A small part of `python -m training.evaluate`."""
    verdicts = []
    for number, codec in enumerate(("h264", "vp9", "mpeg4", "h264", "mpeg4", "vp9")):
        random = Random(f"slice:{number}")
        scene = draw_scene(random)
        form = Format(codec=codec, width=random.choice((160, 224, 320)), height=random.choice((128, 240)))
        path = write_scene(scene, form, tmp_path / f"{number}{form.suffix}")
        exchanges = draw_dialogue(random, scene, 10)
        given = talk(service, service.upload(path)["id"], [exchange.question for exchange in exchanges])
        verdicts += [exchange.is_right(answer) for exchange, answer in zip(exchanges, given, strict=True)]
    assert sum(verdicts) >= 0.95 * len(verdicts)


@pytest.mark.parametrize("name", ["yoga.mp4", "jesse_dance.mp4"])
def test_a_film_of_people_is_recognised_as_unknown(service: RunningService, name: str) -> None:
    video_id = service.upload(clip(name))["id"]
    assert talk(service, video_id, QUESTIONS) == [UNKNOWN] * len(QUESTIONS)


@pytest.mark.parametrize("kind", ["black", "noise"])
def test_blank_and_noisy_clips_are_recognised_as_unknown(service: RunningService, tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(1)
    highest = {"black": 1, "noise": 256}[kind]
    pictures = (generator.integers(0, highest, (96, 128, 3), np.uint8) for _ in range(16))
    path = write_pictures(pictures, Format(codec="h264", width=128, height=96), tmp_path / "a.mp4", fps=8)
    assert talk(service, service.upload(path)["id"], QUESTIONS) == [UNKNOWN] * len(QUESTIONS)


def test_an_answer_is_the_same_alone_in_a_batch_from_the_cache_and_after_a_restart(tmp_path: Path) -> None:
    """Byte for byte at temperature 0: alone, sixteen concurrently, and from features encoded again."""

    def alone(service: RunningService, video_id: str) -> list[str]:
        return [talk(service, video_id, [question])[0] for question in QUESTIONS]

    with running(tmp_path) as service:
        video = service.upload(SAMPLES / "farewell.webm")
        expected = alone(service, video["id"])
        assert len(set(expected)) == len(QUESTIONS)
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda question: talk(service, video["id"], [question])[0], QUESTIONS * 2))
        assert together == expected * 2
        encoded = service.metric("reeltalk_video_encode_seconds_count")
        assert encoded == 1, "all of that came from the cached features"
        assert service.forget_features(video["sha256"]) == 1
        assert alone(service, video["id"]) == expected
        assert service.metric("reeltalk_video_encode_seconds_count") == encoded + 1
    with running(tmp_path) as service:
        assert alone(service, video["id"]) == expected
        assert service.metric("reeltalk_video_encode_seconds_count") == 0
