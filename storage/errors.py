"""The errors of this package.

SearchloopError
├── StorageError     the database or the archive cannot be read or written
└── EvaluationError  runs, judgments or their numbers do not fit together
"""

from __future__ import annotations

from streams.errors import SearchloopError


class StorageError(SearchloopError, RuntimeError):
    """The database or the archive cannot be read or written; the message names the parts that are still whole."""


class EvaluationError(SearchloopError, ValueError):
    """Runs, judgments or scores do not fit together."""
