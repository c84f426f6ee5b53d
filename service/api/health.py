"""Health checks and metrics."""

import asyncio

from fastapi import APIRouter, Response

from service.api.dependencies import BEARER, ServiceDep
from service.api.errors import documented
from service.api.schemas import Health
from service.errors import Unavailable

router = APIRouter(tags=["operation"])

_PING_TIMEOUT = 2.0


@router.get("/healthz")
async def healthz() -> Health:
    """Liveness: the process responds."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "The replica cannot answer questions."}})
async def readyz(response: Response, service: ServiceDep) -> Health:
    """Readiness: whether the replica can answer questions with its default model now."""
    missing = ["draining"] if service.drain.is_announced else []
    try:
        await asyncio.wait_for(service.redis.ping(), _PING_TIMEOUT)
    except (Unavailable, TimeoutError):
        missing.append("store")
    if not service.pools.ready:
        missing.append("model")
    problems = service.pools.problems
    if missing:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return Health(status="unavailable", missing=tuple(missing), problems=problems)
    return Health(status="ok", problems=problems)


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented(401, 403) | {200: {"content": {"text/plain": {}}}},
    dependencies=[BEARER],
)
async def metrics(service: ServiceDep) -> Response:
    """All metrics, in Prometheus' text format."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
