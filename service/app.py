"""The composition root: builds the parts of a replica, starts them in order and stops them in reverse."""

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator

from fastapi import FastAPI

from service.access.authentication import Authentication
from service.access.limits import ConcurrencyLimit
from service.access.middleware import RequireKey
from service.answers.admission import Admission
from service.answers.build import run_answers
from service.api import admin, answers, chat_completions, files, health, models, page, sessions, uploads, videos
from service.api.contract import describe_contract
from service.api.dependencies import BEARER, LOGGED, Service
from service.api.errors import ReplyToCancelled, documented, install_error_handlers
from service.api.request_log import ObserveRequests
from service.api.size_limits import LimitBodies
from service.api.tus import TusProtocol
from service.decoding.decoder import run_decoder
from service.drain import Drain
from service.model_loading import ModelLoading
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.stores import open_stores
from service.videos.build import run_videos
from service.workers.build import run_pools

_FOR_TENANTS = (videos, sessions, answers, chat_completions, files, uploads)
_FOR_ALL = (health, models, page)
_MAX_JSON_BYTES = 1 << 20
_UPLOADS = ("/v1/videos", "/v1/files", "/v1/uploads")
"""Paths whose bodies are files, written to disk as they come."""


def create_app(settings: Settings, *, redis_url: str) -> FastAPI:
    """The web application of one replica; its workers, children and connections start and end with its lifespan."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(settings, redis_url, metrics) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="Reeltalk",
        summary="Upload a video, then talk about it.",
        version=importlib.metadata.version("reeltalk"),
        lifespan=lifespan,
        # `service.observability.tracing` makes the spans; FastAPI's own would carry the text of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(TusProtocol, path="/v1/uploads")
    app.add_middleware(
        LimitBodies,
        max_bytes=_MAX_JSON_BYTES,
        unlimited=_UPLOADS,
        larger={"/v1/chat/completions": settings.max_inline_bytes},
    )
    app.add_middleware(RequireKey, loopback_only=not settings.allow_unauthenticated)
    routes = [route for part in (*_FOR_TENANTS, admin, *_FOR_ALL) for route in part.router.routes]
    app.add_middleware(ReplyToCancelled)
    app.add_middleware(ObserveRequests, metrics=metrics, routes=routes)
    install_error_handlers(app)
    for part in _FOR_TENANTS:
        app.include_router(part.router, dependencies=[BEARER, LOGGED], responses=documented(401, 403, 429))
    app.include_router(admin.router, dependencies=[BEARER], responses=documented(401))
    for part in _FOR_ALL:
        app.include_router(part.router)
    page.mount_static_files(app)
    describe_contract(app)
    return app


@contextlib.asynccontextmanager
async def _running(settings: Settings, redis_url: str, metrics: Metrics) -> AsyncIterator[Service]:
    """Build and start the parts of a replica in order; they stop in reverse."""
    async with contextlib.AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(settings, redis_url=redis_url, metrics=metrics))
        admission = Admission(settings, metrics)
        pools = await stack.enter_async_context(run_pools(settings, metrics=metrics))
        decoder = await stack.enter_async_context(run_decoder(settings, metrics=metrics))
        video_parts = await stack.enter_async_context(
            run_videos(settings, stores, pools=pools, decoder=decoder, metrics=metrics, check_open=admission.check_open)
        )
        stack.callback(pools.retire)  # workers that end from here on are not started again
        answers = await stack.enter_async_context(
            run_answers(
                settings=settings,
                stores=stores,
                pools=pools,
                preparation=video_parts.preparation,
                ingest=video_parts.ingest,
                concurrency_limit=ConcurrencyLimit(stores.api_keys, metrics=metrics),
                admission=admission,
                metrics=metrics,
            )
        )
        model_loading = ModelLoading(settings, pools=pools, runner=answers.runner, grace=settings.shutdown_timeout)
        stack.push_async_callback(model_loading.close)
        drain = Drain(
            admission=admission,
            answers=answers.answers,
            notice=settings.drain_notice,
            patience=settings.shutdown_timeout,
        )
        stack.push_async_callback(drain.finish)
        yield Service(
            settings=settings,
            authentication=Authentication(stores.api_keys, settings=settings, metrics=metrics),
            admission=admission,
            answers=answers.answers,
            completions=answers.completions,
            questions=answers.questions,
            sessions=answers.sessions,
            drain=drain,
            preparation=video_parts.preparation,
            ingest=video_parts.ingest,
            resumable=video_parts.resumable,
            pools=pools,
            model_loading=model_loading,
            redis=stores.redis,
            metrics=metrics,
        )
