"""A session, its video and an answer as the tests need them: complete, and about nothing."""

from model.engine.sampling_params import SamplingParams
from model.text.conversation import Turn
from service.answers.generation import LiveAnswer
from service.ids import new_id, video_id
from service.store.answers import AnswerStore, CreateOutcome
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.log_follower import LogFollower
from service.store.records import AnswerRecord, FrameRequest, Sampling, SessionRecord, VideoRecord
from service.store.sessions import SessionStore

TENANT = "acme"
OWNER = "own_first"
PARAMS = SamplingParams(max_tokens=8)
_SHA256 = "ab" * 32


def video_record(**fields: object) -> VideoRecord:
    known: dict[str, object] = {
        "id": video_id(TENANT, _SHA256),
        "sha256": _SHA256,
        "bytes": 4,
        "filename": "clip.mp4",
        "content_type": "video/mp4",
        "created_at": 1.0,
    }
    return VideoRecord.model_validate(known | fields)


def session_record(*video_ids: str) -> SessionRecord:
    return SessionRecord(
        id=new_id("ses"), video_ids=video_ids, model="tiny", system="", frames=FrameRequest(), created_at=1.0
    )


def answer_record(session_id: str | None = None) -> AnswerRecord:
    return AnswerRecord(
        id=new_id("ans"),
        session_id=session_id or new_id("ses"),
        question="What is it?",
        sampling=Sampling.model_validate({name: getattr(PARAMS, name) for name in Sampling.model_fields}),
        created_at=1.0,
    )


def live_answer() -> LiveAnswer:
    """An answer about one video that has just been accepted."""
    video = video_record()
    session = session_record(video.id)
    return LiveAnswer(
        tenant=TENANT,
        record=answer_record(session.id),
        session=session,
        videos=(video,),
        turns=(Turn(role="user", text="What is it?"),),
        params=PARAMS,
        num_messages=0,
    )


async def accept(
    redis: StoreClient,
    record: AnswerRecord,
    *,
    opening: LogEvent | None = None,
    owner: str = OWNER,
    lease_seconds: float = 10.0,
) -> bool:
    """Keep an answer as `chat` does, in a session that is there."""
    session = SessionRecord(
        id=record.session_id, video_ids=(), model="tiny", system="", frames=FrameRequest(), created_at=1.0
    )
    if await SessionStore(redis).get(TENANT, session.id) is None:
        await SessionStore(redis).create(TENANT, session)
    outcome = await AnswerStore(redis, LogFollower(redis)).create(
        TENANT,
        record,
        opening=opening or LogEvent(1, "answer", {"id": record.id}),
        num_messages=0,
        owner=owner,
        lease_seconds=lease_seconds,
    )
    return outcome is CreateOutcome.CREATED
