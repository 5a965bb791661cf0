"""Secrets in files: how a setting `NAME_file` is read, and who else may read that file."""

from __future__ import annotations

import logging
import stat
from functools import cache
from pathlib import Path

from streams.errors import SettingsError
from streams.secrets import Secret

FILE_SUFFIX = "_file"
BYTES_MAX = 64 * 1024
log = logging.getLogger(__name__)


def read_secret(path: Path, *, setting: str) -> Secret:
    """Return the one line that the file holds, without its line break; say once if everybody may read it.

    Raises SettingsError, which shows nothing of the content, if there is no such file or it holds something else.
    """
    try:
        warn_if_open(path, setting)
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name.
        reason = getattr(error, "strerror", None) or type(error).__name__
        # Who mistook this setting for the secret's own has written the secret here; such a text is hardly ever a path.
        shown = path if path.is_absolute() else "a text that is not shown, as it may be the secret itself"
        raise SettingsError(f"{setting}: expected a file that holds the secret, got {shown}: {reason}") from None
    text = content.decode("utf-8", errors="replace").removeprefix("\ufeff")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or len(content) > BYTES_MAX or "\ufffd" in text or not text.replace(" ", "").isprintable():
        raise SettingsError(
            f"{setting}: expected one line of UTF-8 in {path}, got {_what_else(text, len(content))}; write the secret "
            "alone into it"
        )
    return Secret(text)


@cache
def warn_if_open(path: Path, setting: str) -> None:
    """Warn if others than the owner and the group may read a file with a secret."""
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH:
        log.warning("%s: every user of this machine may read %s. Run: chmod 600 %s", setting, path, path)


def _what_else(text: str, length: int) -> str:
    if not length:
        return "an empty file"
    if length > BYTES_MAX:
        return f"more than {BYTES_MAX // 1024} KiB"
    return "an empty line" if not text.strip() else f"{len(text.splitlines())} lines, or what is no text"
