"""What a process needs of a model: all of it, what sees, or what speaks. No torch."""

from typing import Literal

Role = Literal["all", "encode", "generate"]
"""`encode` loads what features are made with, `generate` the projection and the language model."""
