"""Health checks, metrics, and the models that are served."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Response

from service.api.dependencies import BEARER, ServiceDep
from service.api.errors import documented
from service.api.schemas import Health, Model, ModelList
from service.errors import NotFound, Unavailable
from service.workers.protocol import ModelInfo

router = APIRouter(tags=["operation"])

_PING_TIMEOUT = 2.0


@router.get("/healthz")
async def healthz() -> Health:
    """Liveness: the process responds."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health, "description": "The replica cannot answer questions."}})
async def readyz(response: Response, service: ServiceDep) -> Health:
    """Readiness: whether the replica can answer questions now."""
    missing = ["draining"] if service.drain.is_announced else []
    try:
        await asyncio.wait_for(service.redis.ping(), _PING_TIMEOUT)
    except (Unavailable, TimeoutError):
        missing.append("store")
    if not service.pool.ready:
        missing.append("model")
    problems = service.pool.problems
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


@router.get("/v1/models", responses=documented(401, 403, 429, 503), dependencies=[BEARER])
async def list_models(service: ServiceDep) -> ModelList:
    """List the model that this server serves."""
    return ModelList(data=[_described(await service.preparation.model())])


@router.get("/v1/models/{model}", responses=documented(401, 403, 404, 422, 429, 503), dependencies=[BEARER])
async def get_model(service: ServiceDep, model: Annotated[str, Path(max_length=200)]) -> Model:
    """Get a model."""
    info = await service.preparation.model()
    if model != info.name:
        raise NotFound("model_not_found", f"This server serves the model {info.name!r}.", param="model")
    return _described(info)


def _described(info: ModelInfo) -> Model:
    return Model(
        id=info.name,
        created=0,
        family=info.family,
        quantization=info.quantization,
        max_model_len=info.max_model_len,
        modalities=info.modalities,
        num_video_tokens=info.num_video_tokens,
    )
