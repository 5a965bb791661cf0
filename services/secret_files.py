"""Secrets in files: reading the file of a setting `NAME_file`, and checking its permissions."""

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
    """Return the one line of the file, without its line break; warn once if every user may read the file.

    Raises SettingsError, without any of the content, if the file does not exist or does not hold exactly one line.
    """
    try:
        warn_if_open(path, setting)
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name.
        reason = getattr(error, "strerror", None) or type(error).__name__
        # A user may have confused this setting with the secret's own; the text is then the secret, hardly ever a path.
        shown = path if path.is_absolute() else "a text that is not shown, because it may be the secret itself"
        raise SettingsError(f"{setting}: expected a file that holds the secret, got {shown}: {reason}") from None
    text = content.decode("utf-8", errors="replace").removeprefix("\ufeff")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or len(content) > BYTES_MAX or "\ufffd" in text or not text.replace(" ", "").isprintable():
        raise SettingsError(
            f"{setting}: expected one line of UTF-8 in {path}, got {_what_else(text, len(content))}; write only the "
            "secret into it"
        )
    return Secret(text)


@cache
def warn_if_open(path: Path, setting: str) -> None:
    """Warn if a file with a secret can be read by users other than its owner and group."""
    if stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH:
        log.warning("%s: every user of this machine may read %s. Run: chmod 600 %s", setting, path, path)


def _what_else(text: str, length: int) -> str:
    if not length:
        return "an empty file"
    if length > BYTES_MAX:
        return f"more than {BYTES_MAX // 1024} KiB"
    return "an empty line" if not text.strip() else f"{len(text.splitlines())} lines, or bytes that are not text"
