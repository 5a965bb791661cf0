"""A Kafka and an Elasticsearch with security switched on, and what tests ask of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.app.app import App
from infra.app.home import Home
from services.local import LocalServices
from services.security import SecurityFolder
from services.settings import LocalSettings


@contextmanager
def secure_home() -> Iterator[Home]:
    """Give a home whose services run with security; SEARCHLOOP_TEST_SECURE_HOME names one that is up already."""
    if running := os.environ.get("SEARCHLOOP_TEST_SECURE_HOME"):
        yield Home(Path(running))
        return
    root = Path(tempfile.mkdtemp(prefix="searchloop-secure-"))
    root.chmod(0o755)
    services = LocalServices(root, LocalSettings(quick_start=True, secure=True), attached=True)
    try:
        services.up()
        yield Home(root)
    finally:
        services.remove()
        shutil.rmtree(root, ignore_errors=True)


def as_role(home: Home, role: str = "operator") -> App:
    """Return the app of a role at the services of this home."""
    app = App(home).as_role(role)
    return app.at(app.local_services().endpoints())


def secrets_of(home: Home) -> dict[str, str]:
    """Return every secret of the home's services by what it is."""
    security = SecurityFolder(home.root)
    found = {"stores": security.store_password(), "elastic": security.engine_password.read_text().strip()}
    for folder in (security.kafka, security.elasticsearch):
        for path in folder.glob("*.toml"):
            kept = tomllib.loads(path.read_text())
            found[f"{folder.name}/{path.stem}"] = kept.get("sasl_password") or kept["api_key"]
    return found
