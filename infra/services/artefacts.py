"""The Java artefacts that local services are made of: pinned by version and sha256, fetched once, kept in a cache.

Artefacts are named by Maven coordinates only. Where they come from is the user's business: first the local Maven
repository (`~/.m2/repository` or `M2_REPO`), then the mirrors of the user's Maven settings and the repositories of
jgo's settings, then jgo's default. `python -m infra.services.lock` writes the pins anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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

from infra.services.errors import ProvisionError
from streams.whole_file import put_file

LOCK_FILE = Path(__file__).with_name("artefacts.lock.json")
DOWNLOADS_AT_ONCE = 4
ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before the third

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) while something takes long; total 0 means that nobody knows how long."""


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
        """Where every Maven repository keeps this file."""
        return Path(*self.group.split("."), self.name, self.version, self.file_name)


class ArtefactLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every artefact that local services need; the order of Kafka's is that of its class path."""

    kafka: tuple[Artefact, ...]
    elasticsearch: tuple[Artefact, ...]


def read_lock(path: Path = LOCK_FILE) -> ArtefactLock:
    """Return the pins that travel with this version of searchloop."""
    return msgspec.json.decode(path.read_bytes(), type=ArtefactLock)


def cache_directory(setting: str = "") -> Path:
    """Return the folder for downloads, outside every checkout: the setting, `SEARCHLOOP_CACHE`, or the XDG cache."""
    chosen = setting or os.environ.get("SEARCHLOOP_CACHE", "")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "searchloop"


def artefact_path(cache: Path, artefact: Artefact) -> Path:
    """Return where an artefact lies once it is provisioned."""
    return cache / "artefacts" / artefact.sha256[:16] / artefact.file_name


def missing_artefacts(cache: Path, artefacts: tuple[Artefact, ...]) -> list[Artefact]:
    """Return those that are not in the cache, or not with the pinned size."""

    def there(artefact: Artefact) -> bool:
        path = artefact_path(cache, artefact)
        return path.is_file() and path.stat().st_size == artefact.bytes

    return [artefact for artefact in artefacts if not there(artefact)]


def provision_artefacts(cache: Path, artefacts: tuple[Artefact, ...], progress: Progress = silent) -> list[Path]:
    """Return the artefacts' paths in the cache, in order, and fetch those that are missing.

    A file enters the cache whole, checked and by rename, so an interrupted download leaves nothing that looks right.
    Two processes may call this at once: the second waits, then finds everything there.
    Raises ProvisionError for a wrong sha256, a full disk, or a network that does not answer.
    """
    if missing_artefacts(cache, artefacts):
        with cache_lock(cache, progress):
            _fetch_all(cache, missing_artefacts(cache, artefacts), progress)
    return [artefact_path(cache, artefact) for artefact in artefacts]


@contextlib.contextmanager
def cache_lock(cache: Path, progress: Progress = silent) -> Iterator[None]:
    """Hold the cache for ourselves; whoever dies lets go, because the lock is the kernel's.

    Raises ProvisionError if the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / ".lock").open("w")
    except OSError as error:
        raise ProvisionError(
            f"the cache {cache} cannot be written: {error.strerror}. Name another one with SEARCHLOOP_CACHE"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another searchloop is filling the cache; waiting for it", 0, 0)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _fetch_all(cache: Path, artefacts: list[Artefact], progress: Progress) -> None:
    # We hold the cache's lock, so any staging folder there was left by somebody who was killed.
    for old in cache.glob("staging-*"):
        shutil.rmtree(old, ignore_errors=True)
    staging = cache / f"staging-{os.getpid()}"
    total, done, guard = sum(artefact.bytes for artefact in artefacts), 0, threading.Lock()
    stop = threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        if stop.is_set():  # Ctrl-C, or another download failed: do not finish 132 MB first
            raise ProvisionError("the download was broken off")
        with guard:
            done += count
            progress("fetching Kafka and Elasticsearch (MiB)", min(done, total) >> 20, max(total >> 20, 1))

    try:
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            futures = [pool.submit(_fetch, cache, staging, artefact, advance) for artefact in artefacts]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C too: tell the threads, which the pool waits for
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
            f"expected {artefact.bytes}). The repository or mirror answers with another file: check it, then run again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    put_file(staged, target)


def _download(staging: Path, artefact: Artefact, advance: Callable[[int], None]) -> None:
    @contextlib.contextmanager
    def callback(_file_name: str, _total: int) -> Iterator[Callable[[int], None]]:
        yield advance

    staged = staging / artefact.repository_path
    for attempt in range(1, ATTEMPTS + 1):
        # jgo writes the file in place and refuses to write over one, so each attempt starts from nothing.
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
    """Let requests use the certificates of the operating system, where the user names none.

    It brings its own list, which does not know the authority of a company's proxy; Maven and curl do.
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
    """Return the user's own repositories by name, or None where there are none and jgo's default holds."""
    for settings in (Path.home() / ".m2" / "settings.xml", Path("/etc/maven/settings.xml")):
        mirror = _mirror_of_central(settings)
        if mirror:
            return {"mirror": mirror}
    return dict(GlobalSettings.load().repositories) or None


def _mirror_of_central(settings: Path) -> str:
    """Return the URL of the first mirror that stands for Maven's central repository, or ''."""
    try:
        root = ElementTree.parse(settings).getroot()
    except (OSError, ElementTree.ParseError):
        return ""
    for mirror in root.iterfind("{*}mirrors/{*}mirror"):
        names = [name.strip() for name in (mirror.findtext("{*}mirrorOf") or "").split(",")]
        if "!central" not in names and {"*", "external:*", "central"} & set(names):
            return (mirror.findtext("{*}url") or "").strip().rstrip("/")
    return ""
