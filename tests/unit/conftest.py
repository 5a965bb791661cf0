"""What every unit test begins with."""

from __future__ import annotations

import pytest

from streams import secrets


@pytest.fixture(autouse=True)
def no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets that other tests gave: every message of this process leaves them out, paths included."""
    monkeypatch.setattr(secrets, "_KNOWN", type(secrets._KNOWN)())
