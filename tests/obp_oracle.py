"""The Open Bandit Pipeline as an oracle. Its drawing libraries are not installed, and none of what is used draws."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

DRAWING = ("matplotlib", "matplotlib.pyplot", "seaborn")


def oracle() -> Any:
    """Return the module with the pipeline's estimators."""
    return obp_module("ope.estimators")


def obp_module(name: str) -> Any:
    """Return a module of the pipeline."""
    absent = [name for name in DRAWING if name not in sys.modules]
    sys.modules.update({name: types.ModuleType(name) for name in absent})
    try:
        return importlib.import_module(f"obp.{name}")
    finally:
        for name in absent:
            del sys.modules[name]


def open_bandit_data() -> Path:
    """Return the folder of the small Open Bandit Dataset that comes with the pipeline."""
    found = importlib.util.find_spec("obp")  # type: ignore[attr-defined]
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "dataset" / "obd"
