"""The names of everything in Redis. Every key of a tenant carries the tenant, so that none can reach another's."""


def features(tenant: str, fingerprint: str, sha256: str) -> str:
    """The cached features of one video's bytes under one encoder and frame spec."""
    return f"features:{tenant}:{fingerprint}:{sha256}"


def video(tenant: str, video_id: str) -> str:
    """A video's record."""
    return f"video:{tenant}:{video_id}"


def videos(tenant: str) -> str:
    """Sorted set of video ids by time of creation."""
    return f"videos:{tenant}"


def video_events(tenant: str, video_id: str) -> str:
    """Stream of a video's progress."""
    return f"video:{tenant}:{video_id}:events"


def stored_bytes(tenant: str) -> str:
    """How many bytes the files of a tenant's videos have."""
    return f"videos:{tenant}:bytes"


def reserved_bytes(tenant: str) -> str:
    """Hash of what is reserved for files that are coming in: name -> bytes and when that ends."""
    return f"videos:{tenant}:reserved"


def video_sessions(tenant: str, video_id: str) -> str:
    """Set of the sessions that talk about a video."""
    return f"video:{tenant}:{video_id}:sessions"


def video_features(tenant: str, video_id: str) -> str:
    """Set of the feature keys that were filled for a video."""
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
    """Set of the answers given in a session."""
    return f"session:{tenant}:{session_id}:answers"


def session_lease(tenant: str, session_id: str) -> str:
    """The answer that is being given in a session, by its id; a lease until its question is accepted."""
    return f"session:{tenant}:{session_id}:lease"


def answer(tenant: str, answer_id: str) -> str:
    """An answer's record."""
    return f"answer:{tenant}:{answer_id}"


def answer_events(tenant: str, answer_id: str) -> str:
    """Stream of an answer's events: the log."""
    return f"answer:{tenant}:{answer_id}:events"


def answer_owner(tenant: str, answer_id: str) -> str:
    """Hash: the token of whoever may write an answer, and how often it changed hands without a token gained."""
    return f"answer:{tenant}:{answer_id}:owner"


def answer_lease(tenant: str, answer_id: str) -> str:
    """Lease of an answer's owner: when it has run out, another replica may become the owner."""
    return f"answer:{tenant}:{answer_id}:lease"


def running_answers() -> str:
    """Set of all answers that are being given, of every tenant: `{tenant}/{id}`."""
    return "answers:running"


def answer_cancel(tenant: str, answer_id: str) -> str:
    """Flag: somebody asked for the answer to stop."""
    return f"answer:{tenant}:{answer_id}:cancel"


def retention_lease() -> str:
    """Lease of whoever looks for files that are kept no longer."""
    return "lease:retention"


def upload(tenant: str, upload_id: str) -> str:
    """A resumable upload's record."""
    return f"upload:{tenant}:{upload_id}"


def upload_lease(tenant: str, upload_id: str) -> str:
    """Lease of the request that adds to a resumable upload."""
    return f"upload:{tenant}:{upload_id}:lease"


def fill_lease(features_key: str) -> str:
    """Lease of whoever computes the features of a key."""
    return f"lease:{features_key}"


def answer_reader(tenant: str, answer_id: str) -> str:
    """Flag: somebody follows the answer at a replica that is not its owner."""
    return f"answer:{tenant}:{answer_id}:reader"


def of_answer(tenant: str, answer_id: str) -> tuple[str, ...]:
    """Everything that is kept of one answer."""
    names = (answer, answer_events, answer_owner, answer_lease, answer_cancel, answer_reader)
    return tuple(name(tenant, answer_id) for name in names)


def running_answer(tenant: str, answer_id: str) -> str:
    """An answer's member of the set of running answers."""
    return f"{tenant}/{answer_id}"


def api_keys() -> str:
    """Hash of all API keys: id -> record, with the secret's hash."""
    return "api_keys"


def request_rate(key_id: str) -> str:
    """When an API key's requests will have been paid off."""
    return f"api_key:{key_id}:rate"


def answers_of_key(key_id: str) -> str:
    """Sorted set of the answers asked for with an API key, by the time they were asked."""
    return f"api_key:{key_id}:answers"


def idempotency(tenant: str, key_sha256: str) -> str:
    """What a client's idempotency key stands for: the request's fingerprint and its outcome's id."""
    return f"idempotency:{tenant}:{key_sha256}"
