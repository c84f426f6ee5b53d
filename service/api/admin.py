"""`/admin`: what an operator does to one replica. Without API keys it is answered to this machine alone."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.api.dependencies import CallerDep, ServiceDep
from service.api.errors import documented
from service.api.schemas import DrainState
from service.errors import Forbidden
from service.settings import is_loopback


def _allowed(request: Request, caller: CallerDep) -> None:
    """The gate has asked for the scope. Where nobody has a key, a balancer on this machine speaks for others, and
    says so in a header."""
    if caller.key_id is not None:
        return
    is_relayed = "x-forwarded-for" in request.headers or "forwarded" in request.headers
    if request.client is None or is_relayed or not is_loopback(request.client.host):
        raise Forbidden("not_local", "This is for the machine that the replica runs on.")


Allowed = Annotated[None, Depends(_allowed)]
router = APIRouter(prefix="/admin", tags=["operation"])


@router.get("/drain", responses=documented(403))
async def get_drain(_: Allowed, service: ServiceDep) -> DrainState:
    """How far this replica is on its way out."""
    return DrainState(state=service.drain.state, num_answers=service.admission.num_answers)


@router.post("/drain", status_code=202, responses=documented(403))
async def drain(_: Allowed, service: ServiceDep) -> DrainState:
    """Leave: `/readyz` says so first, then nothing new is taken, then what runs ends or goes to another replica."""
    service.drain.begin()
    return await get_drain(_, service)
