"""The composition root: puts the parts of a replica together, starts them in order and stops them in reverse."""

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import FastAPI

from service.access import Access
from service.answering import Answering
from service.api import answers, health, page, sessions, videos
from service.api.dependencies import BEARER, Service
from service.api.errors import documented, install_error_handlers
from service.chat import Chat
from service.decoding import Decoder
from service.encoding import Encoding
from service.gate import Gate
from service.ingest import Ingest
from service.metrics import Metrics
from service.middleware import LimitBodies, ObserveRequests
from service.settings import Settings
from service.store.answers import AnswerStore
from service.store.api_keys import ApiKeyStore
from service.store.connection import connect
from service.store.features import FeatureCache
from service.store.idempotency import IdempotencyStore
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.workers.pool import Pool
from service.workers.protocol import WorkerConfig

_MAX_JSON_BYTES = 1 << 20


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
    )
    app.add_middleware(LimitBodies, max_bytes=_MAX_JSON_BYTES, unlimited=frozenset({"/v1/videos"}))
    app.add_middleware(Gate, loopback_only=not settings.allow_unauthenticated)
    app.add_middleware(ObserveRequests, metrics=metrics)
    install_error_handlers(app)
    for router in (videos.router, sessions.router, answers.router):
        app.include_router(router, dependencies=[BEARER], responses=documented(401, 403, 429))
    for router in (health.router, page.router):
        app.include_router(router)
    page.mount_static_files(app)
    return app


@contextlib.asynccontextmanager
async def _running(settings: Settings, redis_url: str, metrics: Metrics) -> AsyncIterator[Service]:
    async with contextlib.AsyncExitStack() as stack:
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        media = MediaStore(settings.media_path)
        media.open()

        pool = Pool(
            _worker_configs(settings),
            encode_timeout=settings.encode_timeout,
            worker_timeout=settings.worker_timeout,
            metrics=metrics,
        )
        stack.push_async_callback(pool.close)
        pool.start()
        decoder = Decoder(
            settings.video_limits, timeout=settings.decode_timeout, concurrency=settings.decode_concurrency
        )
        stack.push_async_callback(decoder.close)
        await decoder.start()

        api_keys = ApiKeyStore(redis)
        idempotency = IdempotencyStore(redis, ttl=settings.idempotency_ttl)
        videos_store, sessions_store = VideoStore(redis), SessionStore(redis)
        leases = Leases(redis, seconds=settings.lease_seconds)
        encoding = Encoding(
            pool=pool,
            decoder=decoder,
            videos=videos_store,
            features=FeatureCache(redis, ttl=settings.feature_ttl, metrics=metrics),
            media=media,
            leases=leases,
            metrics=metrics,
        )
        stack.push_async_callback(encoding.close)
        answers_store = AnswerStore(redis)
        answering = Answering(
            settings=settings,
            pool=pool,
            encoding=encoding,
            videos=videos_store,
            answers=answers_store,
            leases=leases,
            metrics=metrics,
        )
        stack.push_async_callback(answering.close)
        answering.start()
        chat = Chat(
            answering=answering,
            pool=pool,
            encoding=encoding,
            videos=videos_store,
            sessions=sessions_store,
            answers=answers_store,
            leases=leases,
            api_keys=api_keys,
            idempotency=idempotency,
            metrics=metrics,
        )
        ingest = Ingest(
            settings=settings,
            encoding=encoding,
            videos=videos_store,
            media=media,
            idempotency=idempotency,
            metrics=metrics,
        )
        stack.callback(pool.retire)  # first of all: what ends from here on is not started again
        yield Service(
            settings=settings,
            access=Access(api_keys, settings=settings, metrics=metrics),
            ingest=ingest,
            encoding=encoding,
            chat=chat,
            answering=answering,
            pool=pool,
            redis=redis,
            metrics=metrics,
        )


def _worker_configs(settings: Settings) -> tuple[WorkerConfig, ...]:
    places = settings.places
    config = WorkerConfig(
        name=settings.model,
        family=settings.family,
        checkpoint=None if settings.checkpoint is None else str(settings.checkpoint),
        places=places,
        number=0,
        dtype=settings.dtype,
        quantization=settings.quantize,
        threads=settings.threads_per_worker,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_batched_frames=settings.max_num_batched_frames,
    )
    return tuple(replace(config, number=number) for number in range(len(places)))
