"""`/admin`: operations on one replica. Without an API key, only requests from the replica's own machine are allowed."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from service.api.dependencies import CallerDep, ServiceDep
from service.api.errors import documented
from service.api.models import described
from service.api.schemas import DrainState, Model, ModelLoad
from service.errors import Forbidden
from service.settings import is_loopback


def _allowed(request: Request, caller: CallerDep) -> None:
    """Refuse remote requests without a key. The scope of a key is already checked.

    A reverse proxy on this machine connects from loopback too, but adds a header that names the client.
    """
    if caller.key_id is not None:
        return
    is_relayed = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    if request.client is None or is_relayed or not is_loopback(request.client.host):
        raise Forbidden(
            "not_local", "Without an API key, this is only allowed from the machine that the replica runs on."
        )


Allowed = Annotated[None, Depends(_allowed)]
router = APIRouter(prefix="/admin", tags=["operation"])


@router.post("/models", status_code=202, responses=documented(403, 409, 413, 422, 503, 507))
async def load_model(_: Allowed, service: ServiceDep, body: ModelLoad) -> Model:
    """Begin to load a model on this replica, if it fits; `GET /v1/models/{model}` has its state."""
    service.admission.check_open()
    return described(service, await service.model_loading.load(body.name, body))


@router.delete("/models/{name}", status_code=202, responses=documented(403, 404, 409, 422))
async def unload_model(_: Allowed, service: ServiceDep, name: Annotated[str, Path(max_length=200)]) -> Model:
    """Begin to unload a model from this replica: its answers end or move to another replica, then its workers end."""
    return described(service, service.model_loading.unload(name))


@router.get("/drain", responses=documented(403))
async def get_drain(_: Allowed, service: ServiceDep) -> DrainState:
    """The state of the replica's shutdown, and the number of its running answers."""
    return DrainState(state=service.drain.state, num_answers=service.admission.num_answers)


@router.post("/drain", status_code=202, responses=documented(403))
async def drain(_: Allowed, service: ServiceDep) -> DrainState:
    """Begin to shut down: `/readyz` fails, then new work is refused, then answers end or move to another replica."""
    service.drain.begin()
    return await get_drain(_, service)
