"""The main flow over HTTP: upload a video, ask, read the streamed answer, and ask again."""

import hashlib
from pathlib import Path

import pytest

from service.commands.demo import SAMPLE
from tests.clips import h264_mp4, rotated_mp4, vp9_webm
from tests.published import clip
from tests.running import RunningService, parse_events

FACTS = {
    "yoga.mp4": {"width": 568, "height": 320, "fps": 30.0, "num_frames": 300, "codec": "h264", "duration": 10.0},
    "jesse_dance.mp4": {"width": 1280, "height": 720, "num_frames": 235, "codec": "h264"},
}
INDICES = {
    "yoga.mp4": [18, 55, 93, 130, 168, 205, 242, 280],
    "jesse_dance.mp4": [14, 43, 72, 102, 131, 160, 190, 219],
}


@pytest.mark.parametrize("name", FACTS)
def test_a_real_clip_is_uploaded_and_asked_about(service: RunningService, name: str) -> None:
    path = clip(name)
    video = service.upload(path)

    assert {field: video[field] for field in FACTS[name]} == FACTS[name]
    assert video["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert video["bytes"] == path.stat().st_size
    assert video["status"] == "ready"
    assert [frame["index"] for frame in video["frames"]] == INDICES[name]

    session_id = service.open_session(video["id"])
    with service.stream(session_id, "What is happening?") as stream:
        events = list(stream)
    names = [event.name for event in events]
    assert names[0] == "answer"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"progress", "delta"}
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    done = events[-1].data
    assert done["usage"]["completion_tokens"] == 8
    assert done["usage"]["prompt_tokens"] > 96  # includes the video tokens
    assert [frame["index"] for frame in done["frames"][0]["frames"]] == INDICES[name]

    text = "".join(event.data["text"] for event in events if event.name == "delta")
    messages = service.client.get(f"/v1/sessions/{session_id}/messages").json()["data"]
    assert [(m["role"], m["content"]) for m in messages] == [("user", "What is happening?"), ("assistant", text)]


def test_the_answer_is_the_same_streamed_or_whole_and_differs_between_clips(
    service: RunningService, drawn: Path, yoga: Path
) -> None:
    answers = []
    for path in (drawn, yoga):
        video_id = service.upload(path)["id"]
        with service.stream(service.open_session(video_id), "Describe the video.", max_tokens=24) as stream:
            streamed = "".join(event.data["text"] for event in stream if event.name == "delta")
        whole = service.ask(service.open_session(video_id), "Describe the video.", max_tokens=24)
        assert whole["content"] == streamed
        assert whole["role"] == "assistant"
        assert whole["finish_reason"] in {"stop", "length"}
        answers.append(streamed)
    assert answers[0] != answers[1], "the model sees the video"


def test_the_second_turn_includes_the_first(service: RunningService) -> None:
    video_id = service.upload(SAMPLE)["id"]
    about = {}
    for shape in ("circle", "square"):
        session_id = service.open_session(video_id)
        first = service.ask(session_id, f"Which way does the {shape} move?", max_tokens=16)
        about[shape] = service.ask(session_id, "What colour is it?", max_tokens=16)
        assert about[shape]["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + 16
    assert about["circle"]["content"] == "The circle is red."
    assert about["square"]["content"] == "The square is blue."


def test_the_same_bytes_again_are_neither_decoded_nor_encoded(service: RunningService, tmp_path: Path) -> None:
    path = h264_mp4(tmp_path / "twice.mp4", frames=30)
    first = service.upload(path)
    decoded = service.metric("reeltalk_video_decode_seconds_count")
    encoded = service.metric("reeltalk_video_encode_seconds_count")

    reply = service.client.post(
        "/v1/videos?filename=other.mp4", content=path.read_bytes(), headers={"Content-Type": "video/mp4"}
    )
    service.ask(service.open_session(reply.json()["id"]), "What is it?")

    assert reply.status_code == 200
    assert reply.json() == first
    assert service.metric("reeltalk_video_decode_seconds_count") == decoded > 0
    assert service.metric("reeltalk_video_encode_seconds_count") == encoded > 0


def test_a_raw_body_is_an_upload(service: RunningService, tmp_path: Path) -> None:
    content = vp9_webm(tmp_path / "raw.webm").read_bytes()
    halves = iter([content[:1000], content[1000:]])  # sent in chunks, without a Content-Length
    reply = service.client.post("/v1/videos?filename=raw.webm", content=halves, headers={"Content-Type": "video/webm"})
    assert reply.status_code == 201
    video = reply.json()
    assert video["filename"] == "raw.webm"
    assert video["codec"] == "vp9"
    assert reply.headers["Location"] == f"/v1/videos/{video['id']}"
    assert service.wait_until_processed(video["id"])["status"] == "ready"


def test_a_rotated_clip_is_shown_upright(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(rotated_mp4(tmp_path / "turned.mp4", 90))
    assert (video["width"], video["height"]) == (96, 160)


def test_progress_events_lead_from_decode_to_ready(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "progress.mp4", frames=31))
    path = f"/v1/videos/{video['id']}/events"
    with service.client.stream("GET", path) as reply:
        events = list(parse_events(reply.iter_lines()))
    assert [event.name for event in events] == ["decode"] * 8 + ["encode"] * 2 + ["ready"]
    fractions = [event.data["fraction"] for event in events if event.name == "decode"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

    with service.client.stream("GET", path, headers={"Last-Event-ID": "9"}) as reply:
        assert [event.id for event in parse_events(reply.iter_lines())] == [10, 11]


def test_the_file_and_its_frames_can_be_downloaded(service: RunningService, drawn: Path) -> None:
    video = service.upload(drawn)
    whole = service.client.get(f"/v1/videos/{video['id']}/content")
    part = service.client.get(f"/v1/videos/{video['id']}/content", headers={"Range": "bytes=10-19"})
    picture = service.client.get(f"/v1/videos/{video['id']}/frames/7.jpg")
    assert whole.content == drawn.read_bytes()
    assert (part.status_code, part.content) == (206, drawn.read_bytes()[10:20])
    assert picture.content.startswith(b"\xff\xd8")
    assert service.client.get(f"/v1/videos/{video['id']}/frames/8.jpg").json()["error"]["code"] == "frame_not_found"


def test_a_session_may_choose_its_frames(service: RunningService, drawn: Path) -> None:
    video_id = service.upload(drawn)["id"]
    session_id = service.open_session(video_id, frames={"count": 4, "start": 1.0, "end": 1.5})
    message = service.ask(session_id, "What is it?")
    times = [frame["timestamp"] for frame in message["frames"][0]["frames"]]
    assert len(times) == 4
    assert all(1.0 <= time <= 1.5 for time in times)
    assert len(service.client.get(f"/v1/videos/{video_id}").json()["frames"]) == 8


def test_a_session_may_be_about_two_videos(service: RunningService, drawn: Path, yoga: Path) -> None:
    ids = [service.upload(path)["id"] for path in (drawn, yoga)]
    message = service.ask(service.open_session(*ids), "Which is longer?")
    assert [frames["video_id"] for frames in message["frames"]] == ids
    assert message["usage"]["prompt_tokens"] > 2 * 96


def test_a_seed_repeats_a_sampled_answer(talkative: RunningService, drawn: Path) -> None:
    video_id = talkative.upload(drawn)["id"]
    given = {
        seed: [
            talkative.ask(talkative.open_session(video_id), "What?", temperature=1.0, seed=seed, max_tokens=24)[
                "content"
            ]
            for _ in range(2)
        ]
        for seed in (1, 2)
    }
    assert given[1][0] == given[1][1]
    assert given[2][0] == given[2][1]
    assert given[1][0] != given[2][0]


def test_a_session_names_its_running_answer(talkative: RunningService, drawn: Path) -> None:
    session_id = talkative.open_session(talkative.upload(drawn)["id"])

    def running() -> list[str | None]:
        listed = talkative.client.get("/v1/sessions?limit=1").json()["data"][0]
        return [
            each["running_answer_id"] for each in (talkative.client.get(f"/v1/sessions/{session_id}").json(), listed)
        ]

    assert running() == [None, None]
    with talkative.stream(session_id, "Tell me all.", max_tokens=1000) as events:
        answer_id = next(events).data["id"]
        assert running() == [answer_id, answer_id]
        answer = talkative.client.get(f"/v1/answers/{answer_id}").json()
        assert (answer["question"], answer["status"]) == ("Tell me all.", "in_progress")
        talkative.client.post(f"/v1/answers/{answer_id}/cancel")
        list(events)
    assert running() == [None, None]


def test_sessions_and_videos_are_listed_newest_first_in_pages(service: RunningService, drawn: Path) -> None:
    video_id = service.upload(drawn)["id"]
    opened = [service.open_session(video_id) for _ in range(3)]
    first = service.client.get("/v1/sessions", params={"limit": 2}).json()
    second = service.client.get("/v1/sessions", params={"limit": 1, "after": first["data"][-1]["id"]}).json()
    assert [item["id"] for item in first["data"] + second["data"]] == opened[::-1]
    assert first["has_more"]
    assert video_id in [item["id"] for item in service.client.get("/v1/videos").json()["data"]]


def test_a_deleted_video_is_deleted_with_all_that_belongs_to_it(service: RunningService, tmp_path: Path) -> None:
    video = service.upload(h264_mp4(tmp_path / "erased.mp4", frames=32))
    session_id = service.open_session(video["id"])
    answer_id = service.ask(session_id, "What is it?")["answer_id"]
    kept_files = {path for path in (service.data_dir / "media").rglob("*") if video["sha256"] in path.name}
    assert kept_files

    assert service.client.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"],
        "object": "video",
        "deleted": True,
    }
    for path in (f"/v1/videos/{video['id']}", f"/v1/sessions/{session_id}", f"/v1/answers/{answer_id}"):
        assert service.client.get(path).status_code == 404
    assert not any(path.exists() for path in kept_files)
    assert not service.keys_about(video["id"], session_id, answer_id, video["sha256"])

    again = service.client.post("/v1/videos", files={"file": ("again.mp4", (tmp_path / "erased.mp4").read_bytes())})
    assert again.status_code == 201


def test_deleting_a_session_keeps_the_video(service: RunningService, drawn: Path) -> None:
    video_id = service.upload(drawn)["id"]
    session_id = service.open_session(video_id)
    service.ask(session_id, "What is it?")
    assert service.client.delete(f"/v1/sessions/{session_id}").json()["deleted"]
    assert service.client.get(f"/v1/sessions/{session_id}/messages").status_code == 404
    assert service.client.get(f"/v1/videos/{video_id}").json()["status"] == "ready"
    assert not service.keys_about(session_id)
