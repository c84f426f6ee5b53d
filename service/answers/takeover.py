"""Taking over answers whose owner died: found, taken, and rebuilt from what is in the store, so that they go on."""

import structlog

from model.text.conversation import Turn
from service.answers.generation import LiveAnswer
from service.errors import InternalError, NotFound, ServiceError
from service.ids import new_id
from service.observability.metrics import Metrics
from service.store.answers import AnswerStore
from service.store.records import VideoRecord
from service.store.sessions import SessionStore
from service.store.videos import VideoStore

_log = structlog.get_logger(__name__)

_MAX_BARREN = 10
"""Owners that may die in a row before the answer gains a token; then the answer is taken to be the cause."""


class Takeover:
    """Becomes the owner of answers that nobody gives."""

    def __init__(
        self,
        *,
        videos: VideoStore,
        sessions: SessionStore,
        answers: AnswerStore,
        lease_seconds: float,
        metrics: Metrics,
    ) -> None:
        self._videos = videos
        self._sessions = sessions
        self._answers = answers
        self._lease_seconds = lease_seconds
        self._metrics = metrics

    async def orphans(self) -> list[tuple[str, str]]:
        """Tenant and id of every answer that is in progress and that nobody gives."""
        return await self._answers.orphans()

    async def take(self, tenant: str, answer_id: str) -> tuple[LiveAnswer, ServiceError | None] | None:
        """Own an answer from now on, unless somebody gives it or it is over.

        Returns:
            The answer as far as its log goes, and what keeps it from going on, if anything does.
        """
        owner = new_id("own")
        num_barren = await self._answers.take(tenant, answer_id, owner, lease_seconds=self._lease_seconds)
        if num_barren is None:
            return None
        record = await self._answers.get(tenant, answer_id)
        session = None if record is None else await self._sessions.get(tenant, record.session_id)
        if record is None or session is None:
            return None  # erased this very moment
        history = await self._sessions.messages(tenant, session.id)
        videos = await self._videos.get_many(tenant, session.video_ids)
        turns = (*(Turn(role=m.role, text=m.content) for m in history), Turn(role="user", text=record.question))
        live = LiveAnswer(
            tenant=tenant,
            record=record,
            session=session,
            videos=tuple(videos),
            turns=turns,
            params=record.sampling,
            num_messages=len(history),
            owner=owner,
        )
        live.take_up(await self._answers.whole_log(tenant, answer_id))
        self._metrics.answer_takeovers.inc()
        _log.info(
            "answer_taken_over",
            answer_id=answer_id,
            tenant=tenant,
            num_tokens=len(live.taken_token_ids),
            num_barren=num_barren,
        )
        return live, _obstacle(num_barren, session.video_ids, videos)


def _obstacle(num_barren: int, video_ids: tuple[str, ...], videos: list[VideoRecord]) -> ServiceError | None:
    if len(videos) < len(video_ids):
        return NotFound("video_not_found", "A video of this session was erased.", param="video_ids")
    if num_barren > _MAX_BARREN:
        return InternalError("answer_lost", "Whoever gave this answer died, again and again; ask another question.")
    return None
