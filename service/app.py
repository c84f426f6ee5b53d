"""The composition root: puts the parts of a replica together, starts them in order and stops them in reverse."""

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from dataclasses import asdict, replace

from fastapi import FastAPI

from service.access.authentication import Authentication
from service.access.limits import ConcurrencyLimit
from service.access.middleware import RequireKey
from service.answers.completions import Completions
from service.answers.questions import Chat
from service.answers.runner import Answering
from service.answers.takeover import Takeover
from service.api import admin, answers, chat_completions, files, health, page, sessions, uploads, videos
from service.api.contract import describe_contract
from service.api.dependencies import BEARER, LOGGED, Service
from service.api.errors import ReplyToCancelled, documented, install_error_handlers
from service.api.request_log import ObserveRequests
from service.api.size_limits import LimitBodies
from service.api.tus import TusProtocol
from service.decoding.decoder import Decoder
from service.drain import Drain
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.answers import AnswerStore
from service.store.api_keys import ApiKeyStore
from service.store.connection import connect
from service.store.features import FeatureCache
from service.store.idempotency import IdempotencyStore
from service.store.leases import Leases
from service.store.media import MediaStore
from service.store.partial_files import LocalPartialFiles, PartialFiles
from service.store.sessions import SessionStore
from service.store.uploads import UploadStore
from service.store.videos import VideoStore
from service.videos.fetching import Fetcher
from service.videos.ingest import Ingest
from service.videos.preparation import Encoding
from service.videos.quota import Quota
from service.videos.resumable import Resumable
from service.videos.retention import Retention
from service.workers.pool import Pool
from service.workers.protocol import WorkerConfig

_FOR_TENANTS = (videos, sessions, answers, chat_completions, files, uploads)
_FOR_ALL = (health, page)
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
    async with contextlib.AsyncExitStack() as stack:
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        cache = redis if settings.cache_redis_url is None else connect(settings.cache_redis_url.get_secret_value())
        stack.push_async_callback(cache.aclose)
        media, partial_files = _files(settings)
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
            settings.video_limits,
            timeout=settings.decode_timeout,
            concurrency=settings.decode_concurrency,
            sandbox_required=settings.decode_sandbox == "required",
        )
        stack.push_async_callback(decoder.close)
        await decoder.start()
        for layer, holds in asdict(decoder.sandbox).items():
            metrics.decode_sandbox.labels(layer).set(holds)

        api_keys = ApiKeyStore(redis)
        concurrency_limit = ConcurrencyLimit(api_keys, metrics=metrics)
        idempotency = IdempotencyStore(redis, ttl=settings.idempotency_ttl)
        videos_store, sessions_store = VideoStore(redis), SessionStore(redis)
        leases = Leases(redis, seconds=settings.lease_seconds)
        encoding = Encoding(
            pool=pool,
            decoder=decoder,
            videos=videos_store,
            features=FeatureCache(cache, ttl=settings.feature_ttl, metrics=metrics),
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
            takeover=Takeover(
                videos=videos_store,
                sessions=sessions_store,
                answers=answers_store,
                lease_seconds=settings.lease_seconds,
                metrics=metrics,
            ),
            metrics=metrics,
        )
        stack.callback(pool.retire)  # what ends from here on is not started again
        stack.push_async_callback(answering.close)
        answering.start()
        retention = Retention(
            settings=settings,
            media=media,
            partial_files=partial_files,
            videos=videos_store,
            leases=leases,
            metrics=metrics,
        )
        stack.push_async_callback(retention.close)
        retention.start()
        drain = Drain(answering=answering, notice=settings.drain_notice, patience=settings.shutdown_timeout)
        stack.push_async_callback(drain.finish)
        chat = Chat(
            answering=answering,
            drain=drain,
            pool=pool,
            encoding=encoding,
            videos=videos_store,
            sessions=sessions_store,
            answers=answers_store,
            leases=leases,
            concurrency_limit=concurrency_limit,
            idempotency=idempotency,
        )
        quota = Quota(videos_store, metrics)
        ingest = Ingest(
            settings=settings,
            drain=drain,
            fetcher=Fetcher(settings.fetch_policy),
            encoding=encoding,
            quota=quota,
            videos=videos_store,
            media=media,
            idempotency=idempotency,
            metrics=metrics,
        )
        resumable = Resumable(
            settings=settings,
            ingest=ingest,
            quota=quota,
            uploads=UploadStore(redis),
            partial_files=partial_files,
            leases=leases,
        )
        completions = Completions(
            settings=settings,
            answering=answering,
            pool=pool,
            encoding=encoding,
            ingest=ingest,
            drain=drain,
            concurrency_limit=concurrency_limit,
            metrics=metrics,
        )
        yield Service(
            settings=settings,
            authentication=Authentication(api_keys, settings=settings, metrics=metrics),
            ingest=ingest,
            encoding=encoding,
            chat=chat,
            answering=answering,
            drain=drain,
            completions=completions,
            resumable=resumable,
            pool=pool,
            redis=redis,
            metrics=metrics,
        )


def _files(settings: Settings) -> tuple[MediaStore, PartialFiles]:
    if settings.media_url is None:
        return MediaStore(settings.media_path), LocalPartialFiles(settings.media_path)
    from service.store.bucket import Bucket  # its client is an extra
    from service.store.bucket_media import BucketStore
    from service.store.bucket_partial_files import BucketPartialFiles

    bucket = Bucket(settings.media_url)
    return BucketStore(settings.media_path, bucket), BucketPartialFiles(settings.media_path, bucket)


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
        cuda_graphs=settings.cuda_graphs,
        max_num_batched_frames=settings.max_num_batched_frames,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    return tuple(replace(config, number=number) for number in range(len(places)))
