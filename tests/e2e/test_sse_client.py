"""A Python client for Server-Sent Events reads an answer, and resumes it."""

import json

from sseclient import SSEClient

from service.commands.demo import SAMPLE
from tests.running import RunningService


def test_an_answer_is_read_and_resumed_after_a_break(service: RunningService) -> None:
    session_id = service.open_session(service.upload(SAMPLE)["id"])
    body = {"content": "How many objects are there?", "stream": True, "temperature": 0}
    with service.client.stream("POST", f"/v1/sessions/{session_id}/messages", json=body) as reply:
        events = SSEClient(reply.iter_bytes()).events()
        first = next(events)
        assert first.event == "answer"
        answer_id = json.loads(first.data)["id"]
    headers = {"Last-Event-ID": str(first.id)}
    with service.client.stream("GET", f"/v1/answers/{answer_id}/events", headers=headers) as reply:
        rest = list(SSEClient(reply.iter_bytes()).events())
    assert (
        "".join(json.loads(event.data)["text"] for event in rest if event.event == "delta") == "There are two objects."
    )
    assert rest[-1].event == "done"
