"""Environment variables that make the libraries of our processes quiet and single-threaded.

This module imports nothing heavy, because torch and similar libraries read these variables when they are imported.
"""

from __future__ import annotations

import os

# One thread for each process, unless the user sets another number. On two cores, five processes already share the work,
# and two torch threads on a busy core were ten times slower than one. Set them before anything imports torch.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def set_library_variables() -> None:
    """Set the variables in this process unless the user has set them; its children inherit them."""
    for name, value in (ONE_THREAD | QUIET).items():
        os.environ.setdefault(name, value)
