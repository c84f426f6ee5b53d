"""Before torch is imported, and Triton with it: without a GPU its kernels are interpreted, not compiled."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
