"""The JDKs of this machine, and the choice of one for each service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from services.errors import ProvisionError
from services.processes import ProcessUser, can_enter

KAFKA_VERSION_MIN = 17
ELASTICSEARCH_VERSION_MIN = 21
# The entitlement agent of Elasticsearch 9.5 attaches to its own JVM and reads classes with jdk.jdi; javac compiles our
# analysis plugin. A JRE, or a runtime cut down with jlink, has neither.
ELASTICSEARCH_MODULES = frozenset({"jdk.jdi", "jdk.attach", "jdk.compiler", "jdk.net", "jdk.management.agent"})

# Folders in which installers put JDKs. We search them and ask each `java` for its version.
PLACES = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/usr/local/openjdk*",
    "/opt/*jdk*",
    "/opt/java/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk*/libexec/openjdk.jdk/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
    "~/.asdf/installs/java/*",
)


class Jdk(msgspec.Struct, frozen=True, kw_only=True):
    """One Java installation that answered; version is the feature release (17, 21, 25)."""

    home: str
    version: int
    modules: frozenset[str]

    @property
    def java(self) -> str:
        return str(Path(self.home) / "bin" / "java")

    @property
    def javac(self) -> str:
        return str(Path(self.home) / "bin" / "javac")

    def lacks_for_kafka(self) -> str:
        """Return the reason why Kafka cannot run on this JDK, or ''."""
        return "" if self.version >= KAFKA_VERSION_MIN else f"is {self.version}, older than {KAFKA_VERSION_MIN}"

    def lacks_for_elasticsearch(self, account: ProcessUser | None = None) -> str:
        """Return the reason why Elasticsearch, run as this account, cannot run on this JDK, or ''."""
        if self.version < ELASTICSEARCH_VERSION_MIN:
            return f"is {self.version}, older than {ELASTICSEARCH_VERSION_MIN}"
        missing = sorted(ELASTICSEARCH_MODULES - self.modules)
        if not Path(self.javac).is_file():
            missing.append("javac")
        if missing:
            return f"has no {', '.join(missing)} (a JRE?)"
        if not can_enter(Path(self.java), account):
            return "cannot be read by the user nobody, the account of Elasticsearch if we are root"
        return ""


def find_jdks(java_home: str = "") -> list[Jdk]:
    """Return every Java that answers, in order of preference: the setting, JAVA_HOME, PATH, then the newest first.

    java_home: if given, only this one is considered.
    """
    found: dict[Path, Jdk] = {}
    for home in [Path(java_home).expanduser()] if java_home else _homes():
        real = home.resolve()
        if real in found or not (real / "bin" / "java").is_file():
            continue
        jdk = ask_jdk(real)
        if jdk is not None:
            found[real] = jdk
    return list(found.values())


def ask_jdk(home: Path) -> Jdk | None:
    """Run one `java` and return the properties that it reports, or None if it does not run."""
    try:
        answer = subprocess.run(
            [str(home / "bin" / "java"), "-Xshare:auto", "--list-modules"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # broken, for another machine, or Java 8, which does not know this option
    modules = dict(line.partition("@")[::2] for line in answer.stdout.split())
    version = re.match(r"\d+", modules.get("java.base", ""))
    return Jdk(home=str(home), version=int(version.group()), modules=frozenset(modules)) if version else None


def jdk_for_kafka(jdks: Sequence[Jdk]) -> Jdk:
    """Return the first JDK that runs both services, otherwise the first that runs Kafka.

    Raises ProvisionError with a list of the JDKs found.
    """
    both = [jdk for jdk in jdks if not jdk.lacks_for_elasticsearch()]
    why = {jdk.home: jdk.lacks_for_kafka() for jdk in jdks}
    return _first_fit([*both, *jdks], why, f"Kafka needs Java {KAFKA_VERSION_MIN} or newer")


def jdk_for_elasticsearch(jdks: Sequence[Jdk], account: ProcessUser | None = None) -> Jdk:
    """Return the first JDK that runs Elasticsearch as this account.

    Raises ProvisionError with a list of the JDKs found.
    """
    why = {jdk.home: jdk.lacks_for_elasticsearch(account) for jdk in jdks}
    return _first_fit(jdks, why, f"Elasticsearch needs a JDK (not a JRE) {ELASTICSEARCH_VERSION_MIN} or newer")


def _first_fit(jdks: Sequence[Jdk], why: Mapping[str, str], need: str) -> Jdk:
    for jdk in jdks:
        if not why[jdk.home]:
            return jdk
    seen = "; ".join(f"{home} {lack}" for home, lack in why.items()) or "no Java was found"
    raise ProvisionError(
        f"{need}: {seen}. Install one (for example Temurin 25), or name it with JAVA_HOME or the setting "
        "services.java_home; `searchloop doctor` lists the JDKs found"
    )


def _homes() -> Iterator[Path]:
    for variable in ("JAVA_HOME", "ES_JAVA_HOME", "JDK_HOME"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path).resolve().parent.parent
    elsewhere = []
    for pattern in PLACES:
        path = Path(pattern).expanduser()
        anchor = Path(path.anchor)
        elsewhere += list(anchor.glob(str(path.relative_to(anchor))))
    yield from sorted(elsewhere, key=lambda home: (_number_in(home.name), home.name), reverse=True)


def _number_in(name: str) -> int:
    number = re.search(r"\d+", name)
    return int(number.group()) if number else 0
