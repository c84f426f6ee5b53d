"""One service with three models: each session streams from its own model, and no model disturbs another."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from service.store.redis_server import embedded_redis
from tests.clips import h264_mp4
from tests.e2e.test_bad_input import refusal
from tests.e2e.test_right_answers import SAMPLES
from tests.running import Event, RunningService, eventually, parse_events, running, started

SAMPLE = SAMPLES / "shapes.mp4"
QUESTION, RIGHT = "Which way does the circle move?", "The red circle moves right."
NAMES = ("tiny", "chatgpt", "copy")
FLAGS = ("--model", "tiny=videochat:", "--model", "chatgpt=video-chatgpt:", "--model", "copy=videochat:")


def models(service: RunningService) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in service.client.get("/v1/models").json()["data"]}


def until(service: RunningService, *names: str, state: str = "ready") -> None:
    """Wait until these models are in a state."""
    eventually(lambda: {models(service)[name]["state"] for name in names} == {state}, timeout=90)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Three models, and one that cannot be loaded."""
    flags = *FLAGS, "--model", "broken=videochat:/nowhere"
    with running(tmp_path_factory.mktemp("several"), *flags, REELTALK_SHUTDOWN_TIMEOUT="60") as service:
        until(service, *NAMES)
        until(service, "broken", state="broken")
        yield service


def test_every_model_is_listed_with_what_it_takes(several: RunningService) -> None:
    listed = models(several)
    assert list(listed) == [*NAMES, "broken"]
    assert [model["is_default"] for model in listed.values()] == [True, False, False, False]
    tiny, chatgpt, broken = (listed[name] for name in ("tiny", "chatgpt", "broken"))
    assert tiny["frames"] == {"default": 8, "min": 1, "max": 100, "rule": "videochat"}
    assert (tiny["rows"], tiny["features"], tiny["modalities"]) == ({"video": 96}, {"video": [96, 128]}, ["video"])
    assert (chatgpt["family"], chatgpt["frames"]["default"]) == ("video-chatgpt", 100)
    unknown = ("max_model_len", "num_video_tokens", "modalities", "frames", "rows", "features", "time_axis")
    assert {broken[field] for field in unknown} == {None}
    assert several.client.get("/v1/models/chatgpt").json() == chatgpt
    assert several.client.get("/v1/models/gpt-5").json()["error"]["code"] == "model_not_found"


def test_a_model_that_cannot_be_loaded_is_a_problem_and_not_the_end_of_the_others(several: RunningService) -> None:
    health = several.client.get("/readyz")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    [problem] = health.json()["problems"]
    assert problem.startswith("Worker 3 of the model 'broken' (all, device auto) does not start: /nowhere/config.json")
    video_id = several.upload(SAMPLE)["id"]
    reply = several.client.post("/v1/sessions", json={"video_ids": [video_id], "model": "broken"})
    assert refusal(reply, 503) == "model_unavailable"
    assert reply.json()["error"]["message"].startswith("The model 'broken' cannot be loaded: /nowhere/config.json")


def test_an_unknown_model_is_refused_with_the_names_of_the_known_ones(several: RunningService) -> None:
    video_id = several.upload(SAMPLE)["id"]
    for name in ("gpt-5", ""):
        session = several.client.post("/v1/sessions", json={"video_ids": [video_id], "model": name})
        completion = several.client.post(
            "/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "Hello?"}]}
        )
        for reply in (session, completion):
            assert refusal(reply, 404) == "model_not_found"
            assert f"no model {name!r}; it has 'tiny', 'chatgpt', 'copy', 'broken'" in reply.json()["error"]["message"]


def test_sessions_of_three_models_stream_together_and_share_only_what_they_may(several: RunningService) -> None:
    video_id = several.upload(SAMPLE)["id"]
    sessions = {name: several.open_session(video_id, model=name) for name in NAMES}
    together = Barrier(len(NAMES), timeout=60)

    def listen(name: str) -> list[Event]:
        with several.stream(sessions[name], QUESTION, max_tokens=200, ignore_eos=True) as stream:
            events = [next(stream) for _ in range(6)]
            together.wait()
            return events + list(stream)

    with ThreadPoolExecutor(len(NAMES)) as threads:
        streams = dict(zip(NAMES, threads.map(listen, NAMES), strict=True))
    texts = {name: "".join(e.data["text"] for e in events if e.name == "delta") for name, events in streams.items()}
    assert texts["tiny"].startswith(RIGHT)
    assert texts["copy"] == texts["tiny"] != texts["chatgpt"]
    frames = {name: len(events[-1].data["frames"][0]["frames"]) for name, events in streams.items()}
    assert frames == {"tiny": 8, "chatgpt": 96, "copy": 8}
    encoded = {name: metric(several, "video_encode_seconds_count", name) for name in NAMES}
    assert encoded == {"tiny": 1, "chatgpt": 1, "copy": 0}, "the copy has the encoder of the default model"
    for name in NAMES:
        assert several.client.get(f"/v1/sessions/{sessions[name]}").json()["model"] == name
        assert metric(several, "generation_tokens_total", name) == 200
        shown = several.client.get(f"/v1/videos/{video_id}", params={"model": name}).json()
        assert (shown["status"], len(shown["frames"])) == ("ready", frames[name])
    assert len(several.client.get(f"/v1/videos/{video_id}").json()["frames"]) == 8


def metric(service: RunningService, name: str, model: str) -> float:
    return service.metric(f'reeltalk_{name}{{model_name="{model}"}}')


def test_a_chat_completion_names_its_model(several: RunningService) -> None:
    parts = [
        {"type": "video_url", "video_url": {"url": several.upload(SAMPLE)["id"]}},
        {"type": "text", "text": QUESTION},
    ]

    def complete(model: str) -> tuple[str, str]:
        body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 16, "temperature": 0}
        completion = several.client.post("/v1/chat/completions", json=body).json()
        return completion["model"], completion["choices"][0]["message"]["content"]

    assert [complete(name) for name in ("tiny", "copy")] == [("tiny", RIGHT), ("copy", RIGHT)]
    model, text = complete("chatgpt")
    assert (model, text == RIGHT) == ("chatgpt", False)


def test_a_completion_may_begin_before_its_video_and_a_session_may_not(several: RunningService) -> None:
    """Clients of chats send text first; a session names its videos once, when it is opened."""
    body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
    reply = several.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens_details"]["video_tokens"] == 0
    assert refusal(several.client.post("/v1/sessions", json={"video_ids": []}), 422) == "missing_field"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ('"checkpoint": ["x"]', "checkpoint", "A checkpoint is the path of a folder, as text."),
        ('"checkpoint": 3', "checkpoint", "A checkpoint is the path of a folder, as text."),
        (r'"checkpoint": "/\ud800"', "checkpoint", r"'/\ud800' is not the name of a folder."),
        ('"checkpoint": "/nowhere"', "checkpoint", "/nowhere cannot be read (No such file or directory)."),
        ('"device": "tpu"', "device", "There is no device 'tpu'; write auto, cpu, cuda or cuda:N."),
        (
            '"workers": 0',
            "workers",
            "At least one worker is needed; write a number, or roles such as encode,generate*2.",
        ),
        (
            '"name": "a b"',
            "name",
            "'a b' is no name; use up to 128 letters, digits and . _ - after a letter or digit.",
        ),
        ('"family": "moviechat"', "family", "There is no family 'moviechat'; the families are "),
        (r'"family": "\ud800"', "family", r"There is no family '\ud800'; the families are "),
    ],
)
def test_a_model_that_cannot_be_described_is_refused_in_a_sentence(
    several: RunningService, fields: str, param: str, message: str
) -> None:
    content = '{"name": "new", "family": "videochat", ' + fields + "}"
    reply = several.client.post("/admin/models", content=content, headers={"Content-Type": "application/json"})
    assert refusal(reply, 422) == "invalid_value"
    assert reply.json()["error"]["param"] == param
    assert reply.json()["error"]["message"].startswith(message)


def test_a_pipe_among_the_files_of_a_model_holds_nobody_up(several: RunningService, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    body = {"name": "new", "family": "videochat", "checkpoint": str(tmp_path)}
    reply = several.client.post("/admin/models", json=body)
    assert refusal(reply, 422) == "invalid_value"
    assert several.client.get("/healthz").status_code == 200


def test_features_of_a_video_are_shown_by_model(several: RunningService, tmp_path: Path) -> None:
    video = several.upload(h264_mp4(tmp_path / "cold.mp4", frames=37))
    shown = several.client.get(f"/v1/videos/{video['id']}", params={"model": "chatgpt"}).json()
    assert (shown["status"], shown["frames"]) == ("uploaded", []), "they are made with the first question"
    session_id = several.open_session(video["id"], model="chatgpt")
    with several.stream(session_id, QUESTION) as stream:
        stages = [event.data["stage"] for event in stream if event.name == "progress"]
    assert stages[-1] == "ready"
    assert "encode" in stages
    shown = several.client.get(f"/v1/videos/{video['id']}", params={"model": "chatgpt"}).json()
    assert (shown["status"], len(shown["frames"])) == ("ready", 37)
    reply = several.client.get(f"/v1/videos/{video['id']}", params={"model": "gpt-5"})
    assert refusal(reply, 404) == "model_not_found"


def test_a_model_is_loaded_and_unloaded_while_the_others_answer(several: RunningService, drawn: Path) -> None:
    client, video_id = several.client, several.upload(drawn)["id"]
    tiny = several.open_session(video_id, model="tiny")
    assert refusal(client.post("/admin/models", json={"name": "tiny", "family": "videochat"}), 409) == "model_exists"
    assert refusal(client.delete("/admin/models/tiny"), 409) == "default_model"
    assert refusal(client.delete("/admin/models/late"), 404) == "model_not_found"
    reply = client.post("/admin/models", json={"name": "late", "family": "videochat", "workers": 1})
    assert (reply.status_code, reply.json()["state"]) == (202, "loading")
    assert several.ask(tiny, "Still there?")["finish_reason"]
    until(several, "late")
    late = several.open_session(video_id, model="late")
    answer = several.ask(late, QUESTION)
    with several.stream(late, "Tell me all.", max_tokens=400, ignore_eos=True) as stream:
        next(stream)
        assert client.delete("/admin/models/late").json()["state"] == "unloading"
        reply = client.post(f"/v1/sessions/{tiny}/messages", json={"content": QUESTION, "max_tokens": 4})
        assert reply.status_code == 200
        reply = client.post("/v1/sessions", json={"video_ids": [video_id], "model": "late"})
        assert refusal(reply, 503) == "model_unavailable"
        assert list(stream)[-1].data["usage"]["completion_tokens"] == 400, "a running answer ends before the workers"
    eventually(lambda: "late" not in models(several), timeout=30)
    assert not any(":4" in command for command in several.children().values()), "its worker has ended"
    reply = client.post(f"/v1/sessions/{late}/messages", json={"content": QUESTION})
    assert refusal(reply, 404) == "model_not_found"
    assert [m["answer_id"] for m in client.get(f"/v1/sessions/{late}/messages").json()["data"]][1] == answer[
        "answer_id"
    ]


def test_models_that_take_no_videos_or_only_so_many_frames_are_served_beside_another(tmp_path: Path) -> None:
    flags = ("--model", "reader=mobillama:", "--model", "tiny=videochat:", "--model", "llava=video-llava:")
    with running(tmp_path / "data", *flags) as service:
        until(service, "reader", "tiny", "llava")
        reader = models(service)["reader"]
        assert (reader["is_default"], reader["modalities"], reader["frames"], reader["rows"]) == (
            True,
            ["text"],
            None,
            {},
        )
        video = service.upload(SAMPLE)
        assert (video["status"], len(video["frames"])) == ("ready", 8), "those of the first model that sees videos"
        assert service.ask(service.open_session(video["id"], model="tiny"), QUESTION, max_tokens=16)["content"] == RIGHT
        assert service.ask(service.open_session(), "Hello?")["usage"]["completion_tokens"] == 8
        reply = service.client.post("/v1/sessions", json={"video_ids": [video["id"]]})
        assert refusal(reply, 422) == "unsupported_value"
        shown = service.client.get(f"/v1/videos/{video['id']}", params={"model": "reader"}).json()
        assert (shown["status"], shown["frames"]) == ("ready", [])

        assert models(service)["llava"]["frames"] == {"default": 8, "min": 8, "max": 8, "rule": "linspace"}
        body = {"video_ids": [video["id"]], "model": "llava", "frames": {"count": 4}}
        reply = service.client.post("/v1/sessions", json=body)
        assert (refusal(reply, 422), reply.json()["error"]["param"]) == ("invalid_value", "frames.count")
        session_id = service.open_session(video["id"], model="llava", frames={"count": 8})
        assert len(service.ask(session_id, QUESTION)["frames"][0]["frames"]) == 8


def test_a_service_whose_default_model_cannot_be_loaded_ends_with_the_cause(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.tiny]\nfamily = "videochat"\n'
        '[models.broken]\nfamily = "videochat"\ncheckpoint = "empty"\ndefault = true\n'
    )
    (tmp_path / "empty").mkdir()
    with started(tmp_path / "data", "--models", str(file)) as service:
        assert service.process.wait(90) == 1
        eventually(lambda: any(line.startswith("reeltalk: ") for line in list(service.output)))
    [line] = [line for line in service.output if line.startswith("reeltalk: ")]
    assert line == f"reeltalk: {tmp_path}/empty/config.json does not exist or is not a JSON file.\n"


def test_answers_of_a_killed_replica_continue_where_their_model_is_served(tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(embedded_redis(tmp_path / "shared"))
        shared = {"REELTALK_REDIS_URL": url, "REELTALK_MEDIA_DIR": str(tmp_path / "media")}
        shared["REELTALK_DISCONNECT_GRACE"] = "120"
        there = stack.enter_context(running(tmp_path / "b", *FLAGS[:2], *FLAGS[4:], **shared))
        here = stack.enter_context(running(tmp_path / "a", *FLAGS, **shared))
        until(here, *NAMES)
        video_id = here.upload(SAMPLE)["id"]
        fields = {"max_tokens": 900, "ignore_eos": True, "temperature": 1.0, "seed": 5}
        answers: dict[str, str] = {}
        seen: dict[str, list[Event]] = {}
        for name in NAMES:
            body = {"content": QUESTION, "stream": True, **fields}
            session_id = here.open_session(video_id, model=name)
            reply = stack.enter_context(here.client.stream("POST", f"/v1/sessions/{session_id}/messages", json=body))
            stream = parse_events(reply.iter_lines())
            seen[name] = [next(stream) for _ in range(8)]
            answers[name] = seen[name][0].data["id"]
        here.process.send_signal(signal.SIGKILL)

        def rest(name: str) -> list[Event]:
            path, last = f"/v1/answers/{answers[name]}/events", seen[name][-1].id
            with there.client.stream("GET", path, headers={"Last-Event-ID": str(last)}) as reply:
                return list(parse_events(reply.iter_lines()))

        for name in ("tiny", "copy"):
            events = seen[name] + rest(name)
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            assert events[-1].data["usage"]["completion_tokens"] == 900
        assert there.client.get(f"/v1/answers/{answers['chatgpt']}").json()["status"] == "in_progress"
        assert (
            there.client.post("/admin/models", json={"name": "chatgpt", "family": "video-chatgpt"}).status_code == 202
        )
        events = seen["chatgpt"] + rest("chatgpt")
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert events[-1].data["usage"]["completion_tokens"] == 900
