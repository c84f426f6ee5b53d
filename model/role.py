"""The part of a model that a process loads: all of it, the encoder, or the language model. Imports no torch."""

from typing import Literal

Role = Literal["all", "encode", "generate"]
"""`encode` loads the modules that compute features; `generate` loads the projection and the language model."""
