"""The state of promotion on disk, in the live run's folder: written by `promote`, read by servers.

`ramp.json` is the ramp of one version. `routes/VERSION.json` holds the routes of a version that the held-out gate has
admitted: which parts of the queries it may serve.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from search_env.serving.ramp import Ramp
from search_env.serving.routing import Routes
from streams.errors import SettingsError
from streams.names import is_version_name
from streams.whole_file import write_file

RAMP_FILE = "ramp.json"
ROUTES_FOLDER = "routes"


def read_ramp(folder: Path) -> Ramp | None:
    """Return the state of a live run's ramp, or None if no version was ever promoted.

    Raises SettingsError if the file holds no ramp.
    """
    path = folder / RAMP_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ramp)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError(
            f"{path}: expected the state of a ramp, got: {error}. Servers keep the state that they have. Look at the "
            "last decision (searchloop promote --why), move the file away, and promote its version again; without the "
            "file, a server that starts serves raw results"
        ) from error


def routes_paths(folder: Path) -> list[Path]:
    """Return the files of routes in a live run's folder, in the order of their names."""
    return sorted(path for path in (folder / ROUTES_FOLDER).glob("*.json") if is_version_name(path.stem))


def read_routes(folder: Path, version: str) -> Routes | None:
    """Return a version's routes in a live run, or None if no gate has admitted it there.

    Raises SettingsError as `read_routes_file` does, and for a name that no version has.
    """
    path = folder / ROUTES_FOLDER / f"{_checked(version)}.json"
    return read_routes_file(path) if path.exists() else None


def read_routes_file(path: Path) -> Routes:
    """Return the routes in a file. Raises SettingsError if it holds none, or those of another version."""
    said = "Servers keep the routes that they have. Move the file away, and promote the version again"
    try:
        routes = msgspec.json.decode(path.read_bytes(), type=Routes)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path}: expected the routes of a version, got: {error}. {said}") from error
    if routes.version != path.stem:
        raise SettingsError(
            f"{path}: expected the routes of {path.stem}, got those of {routes.version[:100]!r}. {said}"
        )
    return routes


def write_routes(folder: Path, routes: Routes) -> None:
    """Replace a version's routes."""
    path = folder / ROUTES_FOLDER / f"{_checked(routes.version)}.json"
    write_file(path, msgspec.json.format(msgspec.json.encode(routes), indent=1))


def _checked(version: str) -> str:
    if not is_version_name(version):
        raise SettingsError(
            f"VERSION: expected the name of a policy version, such as 1-a1b2c3-000040, got {version[:100]!r}. "
            "`searchloop report --run RUN` shows them"
        )
    return version
