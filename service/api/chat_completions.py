"""`/v1/chat/completions`: OpenAI's chat completions about videos."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from service.answers.completions import CompletionStarted
from service.api.chat_completion_replies import StreamContent, completion_chunks, whole_completion
from service.api.chat_completion_requests import completion_request
from service.api.chat_completion_schemas import ChatCompletion, ChatCompletionRequest
from service.api.dependencies import CallerDep, ServiceDep
from service.api.disconnects import unless_disconnected
from service.api.errors import documented
from service.api.sse import data_stream

router = APIRouter(prefix="/v1/chat", tags=["OpenAI"])

_REPLY: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The whole completion; with `stream`, events without a name whose data are "
        "`ChatCompletionChunk`s, or an error document, and `[DONE]` at the end.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/completions",
    response_model=ChatCompletion,
    responses=_REPLY | documented(404, 410, 413, 415, 422, 500, 503),
)
async def complete(
    request: Request, service: ServiceDep, caller: CallerDep, body: ChatCompletionRequest
) -> StreamingResponse | ChatCompletion:
    """Continue a conversation about videos. Only the videos are stored."""
    events = service.completions.run(caller, await asyncio.to_thread(completion_request, body))
    started = await anext(events)  # every refusal is raised here, before the response starts
    assert isinstance(started, CompletionStarted)
    if body.stream:
        content = StreamContent(
            usage=body.stream_options is not None and body.stream_options.include_usage, logprobs=bool(body.logprobs)
        )
        return data_stream(completion_chunks(started, events, num_choices=body.n or 1, content=content))
    return await unless_disconnected(request, whole_completion(started, events, with_logprobs=bool(body.logprobs)))
