"""`/v1/models`: the models that the server serves."""

from typing import Annotated

from fastapi import APIRouter, Path

from service.api.dependencies import BEARER, Service, ServiceDep
from service.api.errors import documented
from service.api.schemas import FrameCounts, Model, ModelList
from service.workers.protocol import ModelInfo
from service.workers.served_model import ServedModel

router = APIRouter(prefix="/v1/models", tags=["operation"], dependencies=[BEARER])


@router.get("", responses=documented(401, 403, 429))
async def list_models(service: ServiceDep) -> ModelList:
    """List the models that this server serves, also those that are being loaded or cannot be loaded."""
    return ModelList(data=[described(service, model) for model in service.pools])


@router.get("/{model}", responses=documented(401, 403, 404, 422, 429))
async def get_model(service: ServiceDep, model: Annotated[str, Path(max_length=200)]) -> Model:
    """Get a model."""
    return described(service, service.pools.get(model))


def described(service: Service, model: ServedModel) -> Model:
    """Return the public form of a model; what only its workers know is null until one is ready."""
    spec, info = model.spec, model.info
    return Model(
        id=spec.name,
        created=0,
        family=spec.family,
        quantization=spec.quantization,
        state=model.state,
        is_default=spec.name == service.pools.default,
        max_model_len=None if info is None else info.max_model_len,
        num_video_tokens=None if info is None else info.num_video_tokens,
        modalities=None if info is None else info.modalities,
        frames=None if info is None else _frame_counts(info, limit=service.settings.max_frame_count),
        rows=None if info is None else {part.name: part.shape[0] for part in info.parts},
        features=None if info is None else {part.name: part.shape for part in info.parts},
        time_axis=None if info is None else info.time_axis,
    )


def _frame_counts(info: ModelInfo, *, limit: int) -> FrameCounts | None:
    """The counts of frames that a session may ask for; `limit` is the service's own."""
    if info.inputs is None:
        return None
    frames, most = info.inputs.frames, max(info.inputs.frames.count, min(info.inputs.max_frames, limit))
    return FrameCounts(default=frames.count, min=info.inputs.min_frames, max=most, rule=frames.rule)
