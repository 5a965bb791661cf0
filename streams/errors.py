"""The one root of every error that searchloop raises on purpose.

SearchloopError
├── streams: SettingsError, EventError, DeliveryError
├── search_env: CorpusError, RetrievalError, …
├── learner: PolicyError, CheckpointError, …
├── storage: LogError, EvaluationError, …
└── infra: ServiceError, …

Each leaf is also a standard error (ValueError, RuntimeError …), so callers may catch either. A message says what was
expected, what came, where, and what to do next; the command line prints it in one line and exits with status 1.
"""

from __future__ import annotations


class SearchloopError(Exception):
    """Something went wrong that a person can understand and mend."""


class SettingsError(SearchloopError, ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names its path."""


class EventError(SearchloopError, ValueError):
    """Bytes are not an event that this reader knows."""


class DeliveryError(SearchloopError, RuntimeError):
    """A record could not be read from, or written to, the log."""


class TransientError(SearchloopError, RuntimeError):
    """Something outside is down for now; the same work may succeed later."""
