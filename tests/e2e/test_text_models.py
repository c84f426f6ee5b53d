"""A model that sees no videos is served over HTTP: MobiLlama, small and random, and from its published files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from service.commands.main import app
from tests.published import golden
from tests.running import RunningService, running


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    data_dir = tmp_path_factory.mktemp("data")
    with running(data_dir, "--family", "mobillama", "--workers", "generate") as service:
        yield service


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    """The prompts of the reference: a question, a second question, and a text to continue."""
    prompts: list[dict[str, Any]] = json.loads((golden("mobillama-e2e") / "dialogue.json").read_bytes())["prompts"]
    return prompts


def error_of(reply: httpx2.Response) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["param"], error["message"]


def completion(service: RunningService, *texts: str, model: str, **fields: object) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16, **fields}
    reply = service.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    answered: dict[str, Any] = reply.json()
    return answered


def test_a_session_without_videos_is_answered_in_two_turns(small: RunningService) -> None:
    assert small.client.get("/readyz").json()["missing"] == []
    (model,) = small.client.get("/v1/models").json()["data"]
    assert (model["family"], model["modalities"], model["num_video_tokens"]) == ("mobillama", ["text"], 0)
    answers = []
    bodies: tuple[dict[str, object], ...] = ({}, {"video_ids": []})
    for body in bodies:
        session = small.client.post("/v1/sessions", json=body).json()
        assert session["video_ids"] == []
        given = [small.ask(session["id"], question) for question in ("Hello?", "And then?")]
        assert [(answer["usage"]["completion_tokens"], answer["frames"]) for answer in given] == [(8, []), (8, [])]
        answers.append([answer["content"] for answer in given])
    assert answers[0] == answers[1]


def test_an_answer_without_videos_is_streamed(small: RunningService) -> None:
    with small.stream(small.open_session(), "Hello?") as events:
        names = [event.name for event in events]
    assert (names[0], names[-1]) == ("answer", "done")
    assert "progress" not in names


def test_videos_are_refused_for_a_model_that_sees_none(small: RunningService, drawn: Path) -> None:
    video = small.upload(drawn)
    for video_id in (video["id"], f"vid_{'0' * 32}"):
        refused = error_of(small.client.post("/v1/sessions", json={"video_ids": [video_id]}))
        assert refused == (422, "video_ids", "The model 'tiny' sees no videos; ask it without one.")
    assert error_of(small.client.post("/v1/sessions", json={"frames": {"count": 3}}))[:2] == (422, "frames")
    content = [{"type": "text", "text": "What?"}, {"type": "video_url", "video_url": {"url": video["id"]}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    refused = error_of(small.client.post("/v1/chat/completions", json=body))
    assert refused[:2] == (422, "messages.0.content.1.video_url.url")


def test_an_inline_video_is_refused_before_it_is_stored(small: RunningService) -> None:
    before = small.client.get("/v1/videos").json()["data"]
    content = [{"type": "text", "text": "?"}, {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    assert small.client.post("/v1/chat/completions", json=body).status_code == 422
    assert small.client.get("/v1/videos").json()["data"] == before


def test_an_upload_is_probed_and_ready_without_frames(small: RunningService, drawn: Path, tmp_path: Path) -> None:
    video = small.upload(drawn)
    assert (video["status"], video["num_frames"], video["frames"]) == ("ready", 48, [])
    assert small.client.get(f"/v1/videos/{video['id']}/content").content == drawn.read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    with (tmp_path / "text.mp4").open("rb") as file:
        assert small.client.post("/v1/videos", files={"file": ("text.mp4", file, "video/mp4")}).status_code == 415


def converted(repository: str, folder: Path) -> str:
    source = golden("mobillama-e2e-ckpt") / repository
    arguments = ["convert", str(source), "--to", str(folder), "--family", "mobillama", "--dtype", "float32"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return folder.name


def question_in(prompt: str) -> str:
    """The last question of a prompt of the chat model."""
    return prompt.rpartition("### Human: ")[2].removesuffix("\n### Assistant:")


def test_the_published_chat_model_gives_the_original_s_answers(tmp_path: Path, prompts: list[dict[str, Any]]) -> None:
    model = converted("MobiLlama-05B-Chat", tmp_path / "mine")
    with running(tmp_path / "data", "--family", "mobillama", "--checkpoint", str(tmp_path / "mine")) as service:
        first, second, _ = prompts
        session = service.open_session()
        answer = service.ask(session, question_in(first["prompt"]), max_tokens=16)
        assert (answer["content"].strip(), answer["usage"]["prompt_tokens"]) == (first["text"], len(first["input_ids"]))
        follow_up = service.ask(session, "And then?", max_tokens=16)["content"]
        same = completion(service, question_in(first["prompt"]), answer["content"], "And then?", model=model)
        assert same["choices"][0]["message"]["content"] == follow_up

        two_turns = completion(service, "Hi", "Hello.", question_in(second["prompt"]), model=model)
        assert two_turns["choices"][0]["message"]["content"].strip() == second["text"]
        assert two_turns["usage"]["prompt_tokens"] == len(second["input_ids"])


def test_the_published_base_model_continues_a_text_as_the_original(
    tmp_path: Path, prompts: list[dict[str, Any]]
) -> None:
    converted("MobiLlama-05B", tmp_path / "mine")
    with running(tmp_path / "data", "--family", "mobillama", "--checkpoint", str(tmp_path / "mine")) as service:
        prompt = prompts[2]
        answer = service.ask(service.open_session(), prompt["prompt"], max_tokens=16, repetition_penalty=1.0)
        assert (answer["content"].strip(), answer["usage"]["prompt_tokens"]) == (
            prompt["text"],
            len(prompt["input_ids"]),
        )
