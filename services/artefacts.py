"""The Java artefacts of the local services: pinned by version and sha256, fetched once, kept in a cache.

Only Maven coordinates name the artefacts; the user's configuration decides their source. The sources are, in order: the
local Maven repository (`~/.m2/repository` or `M2_REPO`), the mirrors of the user's Maven settings and the repositories
of jgo's settings, and jgo's default. `python -m services.lock` rewrites the pins.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import ssl
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import requests
from jgo.config import GlobalSettings
from jgo.maven import MavenContext, PythonResolver

from services.errors import ProvisionError
from streams.locks import in_turn
from streams.whole_file import put_file

LOCK_FILE = Path(__file__).with_name("artefacts.lock.json")
DOWNLOADS_AT_ONCE = 4
ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before the third

Progress = Callable[[str, int, int], None]
"""A function that gets (what, done, total) during long work; a total of 0 means that the total is unknown."""


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


class Artefact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pinned file of a Maven repository; bytes is its size."""

    group: str
    name: str
    version: str
    packaging: str
    sha256: str
    bytes: int

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.name}:{self.packaging}:{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}.{self.packaging}"

    @property
    def repository_path(self) -> Path:
        """Return the path of this file in every Maven repository."""
        return Path(*self.group.split("."), self.name, self.version, self.file_name)


class ArtefactLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every artefact that local services need; Kafka's are in the order of its class path."""

    kafka: tuple[Artefact, ...]
    elasticsearch: tuple[Artefact, ...]


def read_lock(path: Path = LOCK_FILE) -> ArtefactLock:
    """Return the pins of this version of searchloop."""
    return msgspec.json.decode(path.read_bytes(), type=ArtefactLock)


def cache_directory(setting: str = "") -> Path:
    """Return the download folder, outside any checkout: the setting, `SEARCHLOOP_CACHE`, or the XDG cache."""
    chosen = setting or os.environ.get("SEARCHLOOP_CACHE", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "searchloop"


def artefact_path(cache: Path, artefact: Artefact) -> Path:
    """Return the path of a provisioned artefact."""
    return cache / "artefacts" / artefact.sha256[:16] / artefact.file_name


def missing_artefacts(cache: Path, artefacts: tuple[Artefact, ...]) -> list[Artefact]:
    """Return the artefacts that are missing from the cache or differ from the pinned size."""

    def there(artefact: Artefact) -> bool:
        path = artefact_path(cache, artefact)
        return path.is_file() and path.stat().st_size == artefact.bytes

    return [artefact for artefact in artefacts if not there(artefact)]


def provision_artefacts(cache: Path, artefacts: tuple[Artefact, ...], progress: Progress = silent) -> list[Path]:
    """Return the artefacts' paths in the cache, in order, and fetch the missing ones.

    A file is checked and then renamed into the cache, so an interrupted download leaves no file that looks complete.
    If two processes call this at once, the second waits and then finds everything in the cache.
    Raises ProvisionError for a wrong sha256, a full disk, or a network that does not answer.
    """
    if missing_artefacts(cache, artefacts):
        with cache_lock(cache, progress):
            _fetch_all(cache, missing_artefacts(cache, artefacts), progress)
    return [artefact_path(cache, artefact) for artefact in artefacts]


def cache_lock(cache: Path, progress: Progress = silent) -> contextlib.AbstractContextManager[None]:
    """Lock the cache for this process; the kernel releases the lock if the process dies.

    Raises ProvisionError if the cache cannot be written.
    """
    return in_turn(
        cache / ".lock",
        refusal=lambda error: ProvisionError(
            f"the cache {cache} cannot be written: {error.strerror}. Name another one with SEARCHLOOP_CACHE"
        ),
        waiting=lambda: progress("another searchloop is filling the cache; waiting for it", 0, 0),
    )


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _fetch_all(cache: Path, artefacts: list[Artefact], progress: Progress) -> None:
    # We hold the cache's lock, so any staging folder there belongs to a process that was killed.
    for old in cache.glob("staging-*"):
        shutil.rmtree(old, ignore_errors=True)
    staging = cache / f"staging-{os.getpid()}"
    total, done, guard = sum(artefact.bytes for artefact in artefacts), 0, threading.Lock()
    stop = threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        if stop.is_set():  # Ctrl-C, or another download failed: do not finish 132 MB first
            raise ProvisionError("the download was interrupted")
        with guard:
            done += count
            progress("fetching Kafka and Elasticsearch (MiB)", min(done, total) >> 20, max(total >> 20, 1))

    try:
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            futures = [pool.submit(_fetch, cache, staging, artefact, advance) for artefact in artefacts]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C too: stop the threads, because the pool waits for them
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(cache).free >> 20
            raise ProvisionError(
                f"the disk of the cache {cache} is full: {total >> 20} MiB are needed, {free} MiB are free. "
                "Make room, or name another cache with SEARCHLOOP_CACHE"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(cache: Path, staging: Path, artefact: Artefact, advance: Callable[[int], None]) -> None:
    target = artefact_path(cache, artefact)
    staged = staging / artefact.repository_path
    staged.parent.mkdir(parents=True, exist_ok=True)
    local = _local_repository() / artefact.repository_path
    if local.is_file() and local.stat().st_size == artefact.bytes and sha256_of(local) == artefact.sha256:
        shutil.copyfile(local, staged)
        advance(artefact.bytes)
    else:
        _download(staging, artefact, advance)
    found = sha256_of(staged)
    if found != artefact.sha256:
        raise ProvisionError(
            f"{artefact.coordinate}: expected sha256 {artefact.sha256}, got {found} ({staged.stat().st_size} bytes, "
            f"expected {artefact.bytes}). The repository or mirror serves a different file: check it, then run again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    put_file(staged, target)


def _download(staging: Path, artefact: Artefact, advance: Callable[[int], None]) -> None:
    @contextlib.contextmanager
    def callback(_file_name: str, _total: int) -> Iterator[Callable[[int], None]]:
        yield advance

    staged = staging / artefact.repository_path
    for attempt in range(1, ATTEMPTS + 1):
        # jgo writes the file in place and never overwrites one, so each attempt starts with an empty folder.
        staged.unlink(missing_ok=True)
        context = MavenContext(
            repo_cache=staging,
            remote_repos=maven_repositories(),
            resolver=PythonResolver(progress_callback=callback),
            timeout=30,
        )
        component = context.project(artefact.group, artefact.name).at_version(artefact.version)
        try:
            component.artifact(classifier="", packaging=artefact.packaging).resolve()
            return
        except ProvisionError:
            raise
        except (requests.RequestException, RuntimeError, AssertionError) as error:
            if isinstance(error, requests.exceptions.SSLError):
                _trust_the_system()
            if attempt == ATTEMPTS:
                raise ProvisionError(
                    f"{artefact.coordinate} could not be fetched ({_first_line(error)}). It needs the network once: "
                    "check the connection, or name your mirror in ~/.m2/settings.xml, or put the file into "
                    f"{_local_repository() / artefact.repository_path.parent}"
                ) from error
            time.sleep(PAUSE_SECONDS * attempt)


def _trust_the_system() -> None:
    """Let the library requests use the operating system's certificates if the user names none.

    Its own list lacks the authority of a company's proxy. Maven and curl use the system's list.
    """
    if not os.environ.get("REQUESTS_CA_BUNDLE") and not os.environ.get("CURL_CA_BUNDLE"):
        paths = ssl.get_default_verify_paths()
        os.environ["REQUESTS_CA_BUNDLE"] = paths.cafile or paths.capath or ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:200]


def _local_repository() -> Path:
    return Path(GlobalSettings.load().repo_cache)


def maven_repositories() -> dict[str, str] | None:
    """Return the user's own repositories by name, or None if there are none and jgo's default applies."""
    for settings in (Path.home() / ".m2" / "settings.xml", Path("/etc/maven/settings.xml")):
        mirror = _mirror_of_central(settings)
        if mirror:
            return {"mirror": mirror}
    return dict(GlobalSettings.load().repositories) or None


def _mirror_of_central(settings: Path) -> str:
    """Return the URL of the first mirror of Maven's central repository, or ''."""
    try:
        root = ElementTree.parse(settings).getroot()
    except (OSError, ElementTree.ParseError):
        return ""
    for mirror in root.iterfind("{*}mirrors/{*}mirror"):
        names = [name.strip() for name in (mirror.findtext("{*}mirrorOf") or "").split(",")]
        if "!central" not in names and {"*", "external:*", "central"} & set(names):
            return (mirror.findtext("{*}url") or "").strip().rstrip("/")
    return ""
