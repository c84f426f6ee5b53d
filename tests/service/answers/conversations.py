"""Records of sessions, videos and answers for tests, complete and minimal."""

from model.engine.sampling_params import SamplingParams
from model.text.conversation import Turn
from service.answers.admission import Admission
from service.answers.answer import RunningAnswer
from service.answers.generation import Generation
from service.ids import new_id, video_id
from service.observability.metrics import Metrics
from service.settings import Settings
from service.store.answers import AnswerStore, CreateOutcome
from service.store.connection import StoreClient
from service.store.event_log import LogEvent
from service.store.log_follower import LogFollower
from service.store.records import AnswerRecord, FrameRequest, SessionRecord, VideoRecord
from service.store.sessions import SessionStore
from service.workers.protocol import Delta

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


def session_record(*video_ids: str, session_id: str | None = None, model: str = "tiny") -> SessionRecord:
    return SessionRecord(
        id=session_id or new_id("ses"),
        video_ids=video_ids,
        model=model,
        system="",
        frames=FrameRequest(),
        created_at=1.0,
    )


def answer_record(session_id: str | None = None) -> AnswerRecord:
    return AnswerRecord(
        id=new_id("ans"),
        session_id=session_id or new_id("ses"),
        question="What is it?",
        sampling=PARAMS,
        created_at=1.0,
    )


def running_answer(
    record: AnswerRecord | None = None,
    *,
    videos: tuple[VideoRecord, ...] = (),
    admission: Admission | None = None,
    model: str = "tiny",
) -> RunningAnswer:
    """An answer that has just been accepted, about no video unless told otherwise."""
    record = record or answer_record()
    admission = admission or Admission(Settings(), Metrics())
    return RunningAnswer(
        tenant=TENANT,
        record=record,
        session=session_record(*(video.id for video in videos), session_id=record.session_id, model=model),
        videos=videos,
        turns=(Turn(role="user", text=record.question),),
        num_messages=0,
        generation=Generation(job_id=new_id("own"), params=PARAMS, place=admission.take_unbounded(1)),
    )


def delta(text: str, *token_ids: int, job_id: str = OWNER, finish_reason: str | None = None) -> Delta:
    """What a worker reports of one step."""
    return Delta(
        job_id=job_id,
        text=text,
        token_ids=token_ids,
        finish_reason=finish_reason,
        num_prompt_tokens=5,
        num_cached_tokens=0,
        num_output_tokens=len(token_ids),
    )


async def accept(
    redis: StoreClient,
    record: AnswerRecord,
    *,
    opening: LogEvent | None = None,
    owner: str = OWNER,
    lease_seconds: float = 10.0,
    model: str = "tiny",
    generator: str | None = None,
) -> bool:
    """Store an answer as `Questions` does, in a session that exists."""
    session = session_record(session_id=record.session_id, model=model)
    if await SessionStore(redis).get(TENANT, session.id) is None:
        await SessionStore(redis).create(TENANT, session)
    outcome = await AnswerStore(redis, LogFollower(redis)).create(
        TENANT,
        record,
        opening=opening or LogEvent(1, "answer", {"id": record.id}),
        num_messages=0,
        owner=owner,
        lease_seconds=lease_seconds,
        generator=generator,
    )
    return outcome is CreateOutcome.CREATED
