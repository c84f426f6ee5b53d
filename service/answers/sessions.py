"""Sessions: conversations, about videos or without any, and their messages."""

import contextlib
import time

from service.answers.acceptance import Acceptance, check_modality
from service.answers.runner import AnswerRunner
from service.errors import InvalidRequest, NotFound
from service.ids import new_id
from service.store import keys
from service.store.idempotency import IdempotencyStore, Repeatable
from service.store.leases import Leases
from service.store.listing import Page
from service.store.records import FrameRequest, MessageRecord, SessionRecord, VideoRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore
from service.videos.feature_keys import DEFAULT_FRAMES, requested_inputs
from service.videos.preparation import check_usable


class Sessions:
    """The sessions of all tenants."""

    def __init__(
        self,
        *,
        acceptance: Acceptance,
        runner: AnswerRunner,
        sessions: SessionStore,
        videos: VideoStore,
        leases: Leases,
        idempotency: IdempotencyStore,
    ) -> None:
        self._acceptance = acceptance
        self._runner = runner
        self._sessions = sessions
        self._videos = videos
        self._leases = leases
        self._idempotency = idempotency

    async def create(
        self,
        tenant: str,
        *,
        video_ids: tuple[str, ...],
        model: str | None,
        system: str,
        frames: FrameRequest,
        repeatable: Repeatable | None = None,
    ) -> SessionRecord:
        """Open a session about videos, or without any for a model that sees none.

        A repeated `repeatable` request returns the session of the first one.

        Raises:
            ServiceError: an unknown video or model, a model that cannot be used now, frames that it does not take, or
                a video that cannot be used.
        """
        session_id = new_id("ses")
        if repeatable is not None:
            claimed_id = await self._idempotency.claim(tenant, repeatable, result_id=session_id)
            if claimed_id != session_id and (known := await self._sessions.get(tenant, claimed_id)):
                return known
            session_id = claimed_id
        info = await self._acceptance.model(model)
        check_modality(info, has_videos=bool(video_ids), param="video_ids")
        if info.inputs is None and frames != DEFAULT_FRAMES:
            raise InvalidRequest("unsupported_value", f"The model {info.name!r} sees no videos.", param="frames")
        if info.inputs is not None:
            requested_inputs(info, frames)
        for video in await known_videos(self._videos, tenant, video_ids):
            check_usable(video)
        record = SessionRecord(
            id=session_id,
            video_ids=video_ids,
            model=info.name,
            system=system,
            frames=frames,
            created_at=time.time(),
        )
        await self._sessions.create(tenant, record)
        return record

    async def get(self, tenant: str, session_id: str) -> SessionRecord:
        """Read a session's record.

        Raises:
            NotFound: there is no such session.
        """
        record = await self._sessions.get(tenant, session_id)
        if record is None:
            raise session_not_found()
        return record

    async def page(self, tenant: str, *, limit: int, after: str | None) -> tuple[list[SessionRecord], Page]:
        """Read a page of sessions, newest first."""
        page = await self._sessions.page(tenant, limit=limit, after=after)
        return await self._sessions.get_many(tenant, page.ids), page

    async def messages(self, tenant: str, session_id: str) -> list[MessageRecord]:
        """Read a session's messages, oldest first.

        Raises:
            NotFound: there is no such session.
        """
        conversation = await self._sessions.conversation(tenant, session_id)
        if conversation is None:
            raise session_not_found()
        return conversation[1]

    async def erase(self, tenant: str, session_id: str) -> None:
        """Erase a session, its messages and its answers, and stop a running answer.

        Raises:
            NotFound: there is no such session.
        """
        record = await self.get(tenant, session_id)
        running = await self._leases.holder(keys.session_lease(tenant, session_id))
        await self._sessions.erase(tenant, record)
        if running is not None:
            self._runner.forget(running)  # at another replica, its owner learns of it with its next write

    async def erase_about(self, tenant: str, video_id: str) -> None:
        """Erase all sessions about a video."""
        for session_id in await self._videos.session_ids(tenant, video_id):
            with contextlib.suppress(NotFound):
                await self.erase(tenant, session_id)


def session_not_found() -> NotFound:
    """The error for an unknown session."""
    return NotFound("session_not_found", "There is no session with this id.", param="session_id")


async def known_videos(store: VideoStore, tenant: str, video_ids: tuple[str, ...]) -> list[VideoRecord]:
    """Read the records of videos, in order.

    Raises:
        NotFound: one of them is unknown.
    """
    videos = await store.get_many(tenant, video_ids)
    if missing := set(video_ids) - {video.id for video in videos}:
        raise NotFound("video_not_found", f"There is no video {sorted(missing)[0]}.", param="video_ids")
    return videos
