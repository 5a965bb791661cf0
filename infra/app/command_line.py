"""Commands that a user can paste into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from infra.app.home import DEFAULT_HOME, Home

NAME = "searchloop"


def pasteable(home: Home, *arguments: str) -> str:
    """Return a command line that works in this process's folder, even if `searchloop` is not on the path."""
    program = [NAME]
    if shutil.which(NAME) is None:
        called = Path(sys.argv[0])
        program = [os.path.relpath(called)] if called.name == NAME else [sys.executable, "-m", "infra.cli"]
    where = [] if home.root == DEFAULT_HOME.absolute() else ["--home", os.path.relpath(home.root)]
    return shlex.join([*program, *where, *arguments])
