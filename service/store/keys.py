"""The names of all keys in Redis. A tenant's keys contain the tenant, so that no tenant can reach another's data."""


def features(tenant: str, fingerprint: str, sha256: str) -> str:
    """The cached features of one video's bytes under one encoder and frame spec."""
    return f"features:{tenant}:{fingerprint}:{sha256}"


def probe(tenant: str, sha256: str) -> str:
    """Names the reading of one video's facts without features; only its lease is stored."""
    return f"probe:{tenant}:{sha256}"


def video(tenant: str, video_id: str) -> str:
    """A video's record."""
    return f"video:{tenant}:{video_id}"


def videos(tenant: str) -> str:
    """Sorted set of video ids by time of creation."""
    return f"videos:{tenant}"


def video_events(tenant: str, video_id: str) -> str:
    """Stream of a video's progress events: its log."""
    return f"video:{tenant}:{video_id}:events"


def stored_bytes(tenant: str) -> str:
    """Total size in bytes of a tenant's video files."""
    return f"videos:{tenant}:bytes"


def reserved_bytes(tenant: str) -> str:
    """Hash of the bytes reserved for uploads in progress: name -> number of bytes and time of expiry."""
    return f"videos:{tenant}:reserved"


def video_sessions(tenant: str, video_id: str) -> str:
    """Set of the sessions about a video."""
    return f"video:{tenant}:{video_id}:sessions"


def video_features(tenant: str, video_id: str) -> str:
    """Set of the keys under which a video's features were cached."""
    return f"video:{tenant}:{video_id}:features"


def session(tenant: str, session_id: str) -> str:
    """A session's record."""
    return f"session:{tenant}:{session_id}"


def sessions(tenant: str) -> str:
    """Sorted set of session ids by time of creation."""
    return f"sessions:{tenant}"


def messages(tenant: str, session_id: str) -> str:
    """Hash of a session's messages: number -> record."""
    return f"session:{tenant}:{session_id}:messages"


def session_answers(tenant: str, session_id: str) -> str:
    """Set of a session's answers."""
    return f"session:{tenant}:{session_id}:answers"


def session_lease(tenant: str, session_id: str) -> str:
    """The id of the answer in progress in a session; the key exists exactly while there is one."""
    return f"session:{tenant}:{session_id}:lease"


def answer(tenant: str, answer_id: str) -> str:
    """An answer's record."""
    return f"answer:{tenant}:{answer_id}"


def answer_events(tenant: str, answer_id: str) -> str:
    """Stream of an answer's events: its log."""
    return f"answer:{tenant}:{answer_id}:events"


def answer_owner(tenant: str, answer_id: str) -> str:
    """Hash: the token of an answer's owner, what generates the answer, and what its take-over needs to know."""
    return f"answer:{tenant}:{answer_id}:owner"


def answer_lease(tenant: str, answer_id: str) -> str:
    """Lease of an answer's owner: after it has expired, another replica may become the owner."""
    return f"answer:{tenant}:{answer_id}:lease"


def running_answers() -> str:
    """Set of all answers in progress, of all tenants: `{tenant}/{id}`."""
    return "answers:running"


def answer_cancel(tenant: str, answer_id: str) -> str:
    """Flag: a client asked to cancel the answer."""
    return f"answer:{tenant}:{answer_id}:cancel"


def retention_lease() -> str:
    """Lease of the replica that removes expired files."""
    return "lease:retention"


def upload(tenant: str, upload_id: str) -> str:
    """A resumable upload's record."""
    return f"upload:{tenant}:{upload_id}"


def upload_lease(tenant: str, upload_id: str) -> str:
    """Lease of the request that appends to a resumable upload."""
    return f"upload:{tenant}:{upload_id}:lease"


def fill_lease(features_key: str) -> str:
    """Lease of the replica that computes the features of a key."""
    return f"lease:{features_key}"


def answer_reader(tenant: str, answer_id: str) -> str:
    """Flag: the answer has a reader on a replica that is not its owner."""
    return f"answer:{tenant}:{answer_id}:reader"


def of_answer(tenant: str, answer_id: str) -> tuple[str, ...]:
    """All keys of one answer."""
    names = (answer, answer_events, answer_owner, answer_lease, answer_cancel, answer_reader)
    return tuple(name(tenant, answer_id) for name in names)


def running_answer(tenant: str, answer_id: str) -> str:
    """An answer's member of the set of running answers."""
    return f"{tenant}/{answer_id}"


def api_keys() -> str:
    """Hash of all API keys: id -> record, which contains the hash of the secret."""
    return "api_keys"


def request_rate(key_id: str) -> str:
    """The time at which an API key's requests so far are paid off, for its rate limit."""
    return f"api_key:{key_id}:rate"


def answers_of_key(key_id: str) -> str:
    """Sorted set of the answers that count for an API key, by the time at which they were requested."""
    return f"api_key:{key_id}:answers"


def idempotency(tenant: str, key_sha256: str) -> str:
    """A client's idempotency key: the fingerprint of the request and the id of its result."""
    return f"idempotency:{tenant}:{key_sha256}"
