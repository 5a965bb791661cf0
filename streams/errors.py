"""The single root of all errors that searchloop raises on purpose.

SearchloopError
├── streams: SettingsError (InputError), EventError, DeliveryError
├── search_env: CorpusError, RetrievalError, …
├── learner: PolicyError, CheckpointError, …
├── storage: LogError, EvaluationError, …
└── infra: ServiceError, …

Each leaf is also a standard error (ValueError, RuntimeError …), so callers may catch either. A message says what was
expected, what came, where, and what to do next. The command line prints it in one line and exits with its status.
"""

from __future__ import annotations

import errno
import re

from streams.secrets import redact

AGAIN = 75  # Exit status: the cause lies outside, so start the process again (EX_TEMPFAIL of sysexits.h).
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class SearchloopError(Exception):
    """An error that a person can understand and fix, printed in one line even if it quotes longer text."""

    exit_status = 1

    def __str__(self) -> str:
        """Return the message without line breaks, control characters and secrets; it may quote anybody's bytes."""
        return redact(_CONTROL.sub(" ", super().__str__()))


def explain_os_error(error: OSError) -> str:
    """Return in one line what the operating system refused, the path if it names one, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return f"{where}the disk is full. Free some space, or choose another path"
    return f"{where}{error.strerror or error}. Check the path and its permissions"


class SettingsError(SearchloopError, ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names its path."""


class InputError(SettingsError):
    """A file that an option names is missing, damaged, or not of the expected kind."""


class EventError(SearchloopError, ValueError):
    """Bytes are not an event that this reader knows."""


class DeliveryError(SearchloopError, RuntimeError):
    """A record could not be read from, or written to, the log."""


class TransientError(SearchloopError, RuntimeError):
    """Something outside is down for now; the same work may succeed later."""
