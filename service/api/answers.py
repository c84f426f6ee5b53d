"""`/v1/answers`: read an answer, resume its stream, cancel it."""

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from service.api.dependencies import EVENT_NUMBER, ServiceDep, TenantDep
from service.api.errors import documented
from service.api.schemas import Answer, AnswerId
from service.api.sessions import ANSWER_EVENTS
from service.api.sse import event_stream

router = APIRouter(prefix="/v1/answers", tags=["answers"])

_EVENTS: dict[int | str, dict[str, object]] = {
    200: {"description": ANSWER_EVENTS, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.get("/{answer_id}", responses=documented(404, 422, 503))
async def get_answer(service: ServiceDep, tenant: TenantDep, answer_id: AnswerId) -> Answer:
    """Get an answer and its status."""
    return Answer.of(await service.answers.get(tenant, answer_id))


@router.get("/{answer_id}/events", response_class=StreamingResponse, responses=_EVENTS | documented(404, 422, 503))
async def follow_answer(
    service: ServiceDep,
    tenant: TenantDep,
    answer_id: AnswerId,
    last_event_id: Annotated[int, Header(ge=0, le=2**53)] = 0,
    after: Annotated[int, EVENT_NUMBER] = 0,
) -> StreamingResponse:
    """Stream an answer's events after the event with this id, in the header or the query; 0 starts at the first."""
    await service.answers.get(tenant, answer_id)
    return event_stream(service.answers.follow(tenant, answer_id, after=max(after, last_event_id)))


@router.post("/{answer_id}/cancel", responses=documented(404, 422, 503))
async def cancel_answer(service: ServiceDep, tenant: TenantDep, answer_id: AnswerId) -> Answer:
    """Stop an answer and keep its text so far. Its stream ends with `done` and the finish reason `abort`."""
    return Answer.of(await service.answers.cancel(tenant, answer_id))
