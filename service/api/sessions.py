"""`/v1/sessions`: conversations, about videos or without any, and their questions."""

import contextlib
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from service.api.dependencies import AfterQuery, CallerDep, LimitQuery, RepeatableDep, Service, ServiceDep, TenantDep
from service.api.disconnects import unless_disconnected
from service.api.errors import documented
from service.api.schemas import (
    Deleted,
    Message,
    MessageList,
    MessageRequest,
    Session,
    SessionId,
    SessionList,
    SessionRequest,
)
from service.api.sse import event_stream
from service.errors import InvalidRequest, NotFound, Unavailable, from_code
from service.store.event_log import LogEvent
from service.store.records import FrameRequest

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

ANSWER_EVENTS = (
    "Events, each with an `id`: `answer` {id, session_id}; `progress` {video_id, stage, fraction}; `delta` {text}; "
    "finally `done` {id, message_id, finish_reason, usage, timings, frames, moments} or `error` {error}."
)
_REPLY: dict[int | str, dict[str, object]] = {
    200: {
        "description": f"The whole message, or with `stream` a stream. {ANSWER_EVENTS}",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post("", status_code=201, responses=documented(404, 413, 422, 503))
async def open_session(
    service: ServiceDep, tenant: TenantDep, repeatable: RepeatableDep, body: SessionRequest
) -> Session:
    """Create a conversation about videos, which need not be ready yet, or without any for a model that sees none."""
    _check_bounds(service, body)
    frames = FrameRequest() if body.frames is None else FrameRequest(**body.frames.model_dump())
    record = await service.sessions.create(
        tenant,
        video_ids=tuple(dict.fromkeys(body.video_ids)),
        model=body.model,
        system=body.system,
        frames=frames,
        repeatable=repeatable,
    )
    return Session.of(record)


@router.get("", responses=documented(422, 503))
async def list_sessions(
    service: ServiceDep, tenant: TenantDep, limit: LimitQuery = 20, after: AfterQuery = None
) -> SessionList:
    """List sessions, newest first."""
    records, page = await service.sessions.page(tenant, limit=limit, after=after)
    running = await service.answers.running(tenant)
    return SessionList(
        data=[Session.of(record, running_answer_id=running.get(record.id)) for record in records],
        has_more=page.has_more,
    )


@router.get("/{session_id}", responses=documented(404, 422, 503))
async def get_session(service: ServiceDep, tenant: TenantDep, session_id: SessionId) -> Session:
    """Get a session, with the id of its running answer."""
    record = await service.sessions.get(tenant, session_id)
    running = await service.answers.running(tenant)
    return Session.of(record, running_answer_id=running.get(session_id))


@router.delete("/{session_id}", responses=documented(404, 422, 503))
async def delete_session(service: ServiceDep, tenant: TenantDep, session_id: SessionId) -> Deleted:
    """Delete a session with its messages; its running answer is stopped."""
    await service.sessions.erase(tenant, session_id)
    return Deleted(id=session_id, object="session")


@router.get("/{session_id}/messages", responses=documented(404, 422, 503))
async def list_messages(service: ServiceDep, tenant: TenantDep, session_id: SessionId) -> MessageList:
    """List all messages of a session, oldest first."""
    records = await service.sessions.messages(tenant, session_id)
    return MessageList(data=[Message.of(record) for record in records])


@router.post(
    "/{session_id}/messages",
    response_model=Message,
    responses=_REPLY | documented(404, 409, 410, 413, 422, 500, 503),
)
async def ask(
    *,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    repeatable: RepeatableDep,
    session_id: SessionId,
    body: MessageRequest,
) -> StreamingResponse | Message:
    """Ask a question. The response is the answer as a message or, with `stream`, as Server-Sent Events."""
    tenant = caller.tenant
    answer = await service.questions.ask(caller, session_id, body.question(), repeatable=repeatable)
    events = service.answers.follow(tenant, answer.id, after=0)
    if body.stream:
        return event_stream(events)
    # A client that disconnects stops reading: after the grace period, the answer is stopped.
    await unless_disconnected(request, _read_to_end(events))
    record = await service.answers.get(tenant, answer.id)
    if record.error is not None:
        raise from_code(record.error.code, record.error.message)
    if record.status == "in_progress":
        raise Unavailable(
            "answer_moved", f"This replica is stopping and another one continues the answer {answer.id}: read it there."
        )
    if record.message is None:
        raise NotFound("answer_not_found", "The answer was deleted before it was complete.")
    return Message.of(record.message)


async def _read_to_end(events: AsyncGenerator[Sequence[LogEvent], None]) -> None:
    async with contextlib.aclosing(events):
        async for _ in events:
            pass


def _check_bounds(service: Service, body: SessionRequest) -> None:
    settings = service.settings
    if len(body.video_ids) > settings.max_videos_per_session:
        raise InvalidRequest(
            "too_many_videos",
            f"A session may have at most {settings.max_videos_per_session} videos.",
            param="video_ids",
        )
    frames = body.frames
    if frames is None:
        return
    if frames.count is not None and frames.count > settings.max_frame_count:
        raise InvalidRequest(
            "too_many_frames", f"At most {settings.max_frame_count} frames can be sampled.", param="frames.count"
        )
    if frames.start is not None and frames.end is not None and frames.end <= frames.start:
        raise InvalidRequest("empty_interval", "`end` must come after `start`.", param="frames.end")
