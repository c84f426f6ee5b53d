"""The visitors of a soak: they use every feature, also wrongly, and record the videos that they create."""

import base64
import collections
import contextlib
import heapq
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2

from service.commands.demo import SAMPLE
from tests.clips import variant
from tests.e2e.fleet import Fleet
from tests.running import parse_events

_KEPT_FOR = 15.0, 90.0  # seconds until a visitor deletes most videos; some later, when their file has expired
_TUS = {"Tus-Resumable": "1.0.0"}
_PIECE = _TUS | {"Content-Type": "application/offset+octet-stream"}
_BUSY = {423, 429, 503}  # 423: a replica lost its lease for lack of CPU time


class Books:
    """The visits, the videos that are still to be deleted, and the errors."""

    def __init__(self) -> None:
        self.visits: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._due: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def count(self, kind: str) -> None:
        with self._lock:
            self.visits[kind] += 1

    def erase_later(self, video_id: str, *, seconds: float) -> None:
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + seconds, video_id))

    def due(self, *, at_once: bool = False) -> list[str]:
        """Take the videos that are due for deletion, or all."""
        found = []
        with self._lock:
            while self._due and (at_once or self._due[0][0] <= time.monotonic()):
                found.append(heapq.heappop(self._due)[1])
        return found


class TurnedAway(Exception):
    """The service was busy; the visit is skipped."""


class Visitor:
    """A client that uses every feature of the service, also wrongly."""

    def __init__(self, fleet: Fleet, books: Books, *, seed: int) -> None:
        self._http = fleet.client()
        self._books = books
        self._rng = random.Random(seed)
        self._ways: dict[Callable[[], None], int] = {
            self.talk: 5,
            self.ask_twice: 2,
            self.cancel: 2,
            self.leave: 2,
            self.erase_in_mid_answer: 1,
            self.complete: 3,
            self.leave_a_completion: 1,
            self.upload_in_pieces: 2,
            self.leave_an_upload: 2,
            self.break_off_an_upload: 2,
            self.upload_rubbish: 2,
            self.upload_a_torn_file: 2,
            self.ask_for_what_is_not_there: 2,
        }

    def close(self) -> None:
        self._http.close()

    def visit(self) -> None:
        """Make one visit of a random kind."""
        [way] = self._rng.choices(list(self._ways), list(self._ways.values()))
        try:
            way()
        except TurnedAway:
            self._books.count("turned away")
        except Exception as error:  # noqa: BLE001  every unexpected error counts
            self._books.problems.append(f"{way.__name__}: {type(error).__name__}: {error}")
        else:
            self._books.count(way.__name__)

    # -- kinds of visits

    def talk(self) -> None:
        session_id = self._session()
        for content in ("What is it?", "And what else?"):
            with self._ask(session_id, content) as events:
                assert list(events)[-1].name == "done"
        if self._rng.random() < 0.3:
            self._expect(self._http.delete(f"/v1/sessions/{session_id}"), 200)

    def ask_twice(self) -> None:
        session_id, key = self._session(), self._rng.randbytes(8).hex()
        body = {"content": "What is it?", "max_tokens": 8}
        ids = set()
        for _ in range(2):
            headers = {"Idempotency-Key": key}
            reply = self._http.post(f"/v1/sessions/{session_id}/messages", json=body, headers=headers)
            ids.add(self._expect(reply, 200).json()["answer_id"])
        assert len(ids) == 1

    def cancel(self) -> None:
        with self._ask(self._session(), "Tell me all.", max_tokens=1500) as events:
            answer_id = next(events).data["id"]
            self._expect(self._http.post(f"/v1/answers/{answer_id}/cancel"), 200, 202)
            assert list(events)[-1].data["finish_reason"] == "abort"

    def leave(self) -> None:
        with self._ask(self._session(), "Tell me all.", max_tokens=300) as events:
            next(events)

    def erase_in_mid_answer(self) -> None:
        video_id = self._video()
        with self._ask(self._session_about(video_id), "Tell me all.", max_tokens=300) as events:
            next(events)
            self._expect(self._http.delete(f"/v1/videos/{video_id}"), 200)
            assert list(events)[-1].name in {"error", "done"}

    def complete(self) -> None:
        reply = self._http.post("/v1/chat/completions", json=self._completion(max_tokens=12))
        assert self._expect(reply, 200).json()["choices"]

    def leave_a_completion(self) -> None:
        body = self._completion(max_tokens=300) | {"stream": True, "ignore_eos": True}
        with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
            self._expect(reply, 200)
            next(reply.iter_lines())

    def upload_in_pieces(self) -> None:
        content = self._content()
        url, half = self._begin_upload(content), len(content) // 2
        for start, piece in ((0, content[:half]), (half, content[half:])):
            headers = _PIECE | {"Upload-Offset": str(start)}
            self._expect(self._http.patch(url, content=piece, headers=headers), 204)
        upload = self._expect(self._http.head(url, headers=_TUS), 200)
        self._keep(upload.headers["Reeltalk-Video-Id"])

    def leave_an_upload(self) -> None:
        content = self._content()
        url = self._begin_upload(content)
        headers = _PIECE | {"Upload-Offset": "0"}
        self._expect(self._http.patch(url, content=content[: len(content) // 2], headers=headers), 204)
        if self._rng.random() < 0.3:
            self._expect(self._http.delete(url, headers=_TUS), 204)

    def break_off_an_upload(self) -> None:
        def half() -> Iterator[bytes]:
            yield self._rng.randbytes(20_000)
            raise ConnectionAbortedError

        with contextlib.suppress(ConnectionAbortedError):
            self._http.post("/v1/videos", content=half(), headers={"Content-Type": "video/mp4"})

    def upload_rubbish(self) -> None:
        reply = self._http.post("/v1/videos", files={"file": ("a.mp4", self._rng.randbytes(5000), "video/mp4")})
        self._expect(reply, 415)

    def upload_a_torn_file(self) -> None:
        """Upload a file with a complete index whose frames are mostly missing."""
        content = bytearray(self._content())
        middle = len(content) // 2
        content[middle : middle + 4000] = self._rng.randbytes(4000)
        reply = self._http.post("/v1/videos", content=bytes(content), headers={"Content-Type": "video/mp4"})
        if self._expect(reply, 201, 422).status_code == 201:
            self._keep(reply.json()["id"])

    def ask_for_what_is_not_there(self) -> None:
        unknown = self._rng.randbytes(16).hex()
        for path in (
            f"/v1/videos/vid_{unknown}",
            f"/v1/sessions/ses_{unknown}/messages",
            f"/v1/{unknown}",
            f"/{unknown}",
        ):
            self._expect(self._http.get(path), 404)
        self._expect(self._http.post("/v1/sessions", json={"video_ids": unknown}), 422)

    # -- steps

    def _content(self) -> bytes:
        return variant(SAMPLE.read_bytes(), self._rng)

    def _video(self) -> str:
        reply = self._http.post("/v1/videos", content=self._content(), headers={"Content-Type": "video/mp4"})
        video_id: str = self._expect(reply, 201).json()["id"]
        self._keep(video_id)
        return video_id

    def _keep(self, video_id: str) -> None:
        self._books.erase_later(video_id, seconds=_KEPT_FOR[self._rng.random() < 0.1])

    def _session(self) -> str:
        return self._session_about(self._video())

    def _session_about(self, video_id: str) -> str:
        reply = self._http.post("/v1/sessions", json={"video_ids": [video_id]})
        session_id: str = self._expect(reply, 201).json()["id"]
        return session_id

    @contextlib.contextmanager
    def _ask(self, session_id: str, content: str, *, max_tokens: int = 16) -> Iterator[Iterator[Any]]:
        body = {"content": content, "stream": True, "max_tokens": max_tokens, "ignore_eos": True}
        with self._http.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
            self._expect(reply, 200)
            yield parse_events(reply.iter_lines())

    def _completion(self, *, max_tokens: int) -> dict[str, Any]:
        if self._rng.random() < 0.5:
            url = self._video()
        else:
            url = "data:video/mp4;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}

    def _begin_upload(self, content: bytes) -> str:
        reply = self._http.post("/v1/uploads", headers=_TUS | {"Upload-Length": str(len(content))})
        return self._expect(reply, 201).headers["Location"]

    def _expect(self, reply: httpx2.Response, *statuses: int) -> httpx2.Response:
        if reply.status_code in _BUSY:
            raise TurnedAway
        assert reply.status_code in statuses, f"{reply.request.method} {reply.url.path}: {reply.status_code}"
        return reply
