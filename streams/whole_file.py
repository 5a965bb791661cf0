"""Files that a reader sees whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; what stands there when the block ends becomes `path` in one rename.

    Each writer has a name of its own: two runs that begin at once on one index write the same caches, and the later
    rename holds. A block that raises leaves nothing, and `path` as it was; only a killed process leaves what it had,
    as `NAME.….writing`. Makes the folders above. Raises OSError as the operating system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.writing")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
