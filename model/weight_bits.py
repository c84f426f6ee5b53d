"""The formats that a language model's weights can be quantised to. No torch."""

from typing import Literal

Quantization = Literal["int8", "int4"]
"""`int8` has one scale per row (torchao); `int4` is NF4 with one scale per 64 weights (bitsandbytes)."""
