"""A question as clients send it."""

from dataclasses import dataclass

from service.answers.sampling import SamplingRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question and how to answer it."""

    content: str
    sampling: SamplingRequest
    priority: int = 0
    timeout: float | None = None
    """Seconds from now after which the client no longer wants the answer."""
