"""How the libraries in a process of ours behave: one thread each, and quiet.

It imports nothing, because torch and its like read these variables when they are imported.
"""

from __future__ import annotations

import os

# One thread for each process, unless the user says otherwise: on two cores five processes share the work already, and
# two torch threads on a busy core were ten times slower than one. Set before anything imports torch.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def set_library_variables() -> None:
    """Set the variables in this process, where the user has not set them; its children inherit them."""
    for name, value in (ONE_THREAD | QUIET).items():
        os.environ.setdefault(name, value)
