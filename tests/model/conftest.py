"""Lets Triton interpret its kernels where there is no GPU; must run before torch is imported."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
