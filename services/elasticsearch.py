"""One local Elasticsearch: the distribution for integration tests, unpacked once, with our analysis plugin."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

from services.artefacts import Artefact, Progress, artefact_path, cache_lock, silent
from services.errors import ProvisionError
from services.jdks import Jdk
from services.processes import ProcessUser, can_enter, java_environment
from services.security import ENGINE, SecurityFolder
from streams.whole_file import put_folder

ROLE = "elasticsearch"
PLUGIN_SOURCE = Path(__file__).with_name("plugin") / "EnglishAnalysisPlugin.java"
PLUGIN_RELEASE = 21  # the oldest JDK that runs this Elasticsearch
# Modules that are not unpacked: tracing, and the security that a loopback server without accounts does not use.
# Together they take 90 MB and half of the start-up time.
MODULES_LEFT_OUT = ("apm", "x-pack-core", "x-pack-security")
SECURE_MODULES_LEFT_OUT = ("apm",)

# Thresholds of the optimizing compiler, twenty times the default: start-up code stays with the fast compiler, and
# search code still reaches the optimizing one. Processor time on two contended cores, for the defaults → these
# thresholds → only the fast compiler: start 15 → 10 → 8 s; indexing 20,000 products 14 → 10 → 7 s; a search after
# 1,000 others 12 → 10 → 13 ms, after 3,000 others 10 → 6 → 12 ms.
PATIENT_COMPILER = (
    "-XX:Tier4InvocationThreshold=100000",
    "-XX:Tier4MinInvocationThreshold=12000",
    "-XX:Tier4CompileThreshold=300000",
    "-XX:Tier4BackEdgeThreshold=800000",
)
FAST_COMPILER = ("-XX:TieredStopAtLevel=1",)

PLUGIN_DESCRIPTOR = """\
description=The analyzer `english`, English token filters and GET /, as in the full distribution
version={version}
name=searchloop-analysis
java.version={release}
elasticsearch.version={version}
classname=searchloop.EnglishAnalysisPlugin
"""

LOG4J = """\
status = error
appender.rolling.type = RollingFile
appender.rolling.name = rolling
appender.rolling.fileName = ${sys:es.logs.base_path}/elasticsearch.log
appender.rolling.filePattern = ${sys:es.logs.base_path}/elasticsearch-%i.log.gz
appender.rolling.layout.type = PatternLayout
appender.rolling.layout.pattern = [%d{ISO8601}][%-5p][%-25c{1.}] %marker%m%n
appender.rolling.policies.type = Policies
appender.rolling.policies.size.type = SizeBasedTriggeringPolicy
appender.rolling.policies.size.size = 16MB
appender.rolling.strategy.type = DefaultRolloverStrategy
appender.rolling.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.rolling.ref = rolling
"""


class LocalElasticsearch:
    """The installation, files and command line of one local Elasticsearch; this class starts no process."""

    def __init__(
        self,
        directory: Path,
        *,
        cache: Path,
        distribution: Artefact,
        account: ProcessUser | None,
        security: SecurityFolder | None = None,
    ) -> None:
        """directory: folder of data, logs and settings; the account must be able to enter it (see `open_directory`).

        security: enables TLS, users and API keys.
        """
        self._security = security
        self.directory = directory
        self.data = directory / "data"
        self.logs = directory / "logs"
        self.configuration = directory / "config"
        self.temporary = directory / "tmp"
        self.account = account
        self._cache = cache
        self._distribution = distribution
        identity = hashlib.sha256(distribution.sha256.encode() + PLUGIN_SOURCE.read_bytes()).hexdigest()[:12]
        self.installation = open_directory(cache, account) / f"elasticsearch-{distribution.version}-{identity}"
        if security is not None:
            self.installation = self.installation.with_name(f"{self.installation.name}-secure")

    def provision(self, *, jdk: Jdk, progress: Progress = silent) -> None:
        """Unpack the distribution and compile the plugin, once per version of either, completely or not at all."""
        if (self.installation / "plugins").is_dir():
            return
        with cache_lock(self._cache, progress):
            if (self.installation / "plugins").is_dir():
                return
            progress("unpacking Elasticsearch", 0, 0)
            make_open(self.installation.parent)
            aside = self.installation.with_name(f".{self.installation.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                left_out = SECURE_MODULES_LEFT_OUT if self._security else MODULES_LEFT_OUT
                root = _unpack(artefact_path(self._cache, self._distribution), aside, left_out)
                progress("compiling the analysis plugin", 0, 0)
                install_plugin(root, version=self._distribution.version, jdk=jdk)
                _open_for_reading(root)
                put_folder(root, self.installation)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def prepare(self) -> None:
        """Make the folders, and give the server's account ownership of those that it writes to."""
        make_open(self.directory.parent)
        for folder in (self.directory, self.data, self.logs, self.configuration, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
            if self.account is not None:
                os.chown(folder, self.account.uid, self.account.gid)
        (self.configuration / "log4j2.properties").write_text(LOG4J)
        if self._security is not None:
            # A copy that only the server's account may read.
            store = self.configuration / f"{ENGINE}.p12"
            aside = store.with_suffix(".aside")
            aside.unlink(missing_ok=True)
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._security.store(ENGINE).read_bytes())
            if self.account is not None:
                os.chown(aside, self.account.uid, self.account.gid)
            aside.replace(store)

    def node_settings(self, *, port: int, transport_port: int, processors: int) -> dict[str, str]:
        """Return the node settings, in place of elasticsearch.yml."""
        disk = "cluster.routing.allocation.disk.watermark"
        doors: dict[str, str] = {}
        if self._security is not None:
            doors = {
                "xpack.security.enabled": "true",
                "xpack.security.autoconfiguration.enabled": "false",
                "xpack.security.enrollment.enabled": "false",
                "xpack.security.http.ssl.enabled": "true",
                "xpack.security.http.ssl.keystore.path": f"{ENGINE}.p12",
            }
        return doors | {
            "cluster.name": "searchloop",
            "node.name": "searchloop",
            "discovery.type": "single-node",
            "network.host": "127.0.0.1",
            "http.port": str(port),
            "transport.port": str(transport_port),
            "path.home": str(self.installation),
            "path.data": str(self.data),
            "path.logs": str(self.logs),
            "node.processors": str(processors),
            "action.auto_create_index": "false",
            # In bytes: the defaults are percentages, and a laptop's disk is often 90% full.
            f"{disk}.low": "1gb",
            f"{disk}.high": "512mb",
            f"{disk}.flood_stage": "256mb",
        }

    def command(self, *, jdk: Jdk, heap_megabytes: int, quick: bool, tags: list[str]) -> list[str]:
        """Return the command line of the server itself.

        `bin/elasticsearch` would start two more JVMs only to compute this line and to pass on `server_arguments`.
        Without them a start is 4 s faster, and the pid is the server's. The options are those of
        org.elasticsearch.server.cli.SystemJvmOptions and config/jvm.options of 9.5, without the garbage collector's
        log.
        """
        lib = self.installation / "lib"
        compiler = FAST_COMPILER if quick else PATIENT_COMPILER
        bridge = next((lib / "entitlement-bridge").glob("*.jar"))
        lucene = "--add-opens=org.apache.lucene.core/org.apache.lucene"
        options = [
            f"-Xms{heap_megabytes}m",
            f"-Xmx{heap_megabytes}m",
            f"-XX:MaxDirectMemorySize={heap_megabytes // 2}m",
            "-XX:+UseSerialGC",  # two cores: G1's threads would take them from the learner
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-OmitStackTraceInFastThrow",
            "-Xss1m",
            "-Djava.awt.headless=true",
            "-Dfile.encoding=UTF-8",
            "-Djava.locale.providers=CLDR",
            f"-Djava.io.tmpdir={self.temporary}",
            "-Djna.nosys=true",
            "-Dio.netty.noUnsafe=true",
            "-Dio.netty.noKeySetOptimization=true",
            "-Dio.netty.recycler.maxCapacityPerThread=0",
            "-Dlog4j.shutdownHookEnabled=false",
            "-Dlog4j2.disable.jmx=true",
            "-Dlog4j2.formatMsgNoLookups=true",
            "-Dorg.apache.lucene.store.defaultReadAdvice=normal",
            "-Dorg.apache.lucene.store.MMapDirectory.sharedArenaMaxPermits=1",
            f"-Des.path.home={self.installation}",
            "-Des.distribution.type=zip",
            "-Des.networkaddress.cache.ttl=60",
            "-Des.networkaddress.cache.negative.ttl=10",
            f"{lucene}.codecs.lucene99=org.elasticsearch.server",
            f"{lucene}.codecs.hnsw=org.elasticsearch.server",
            f"{lucene}.internal.vectorization=org.elasticsearch.server",
            "--enable-native-access=org.elasticsearch.nativeaccess,org.elasticsearch.foreign,org.apache.lucene.core",
            "--add-opens=java.base/jdk.internal.misc=ALL-UNNAMED",
            "-XX:+EnableDynamicAgentLoading",
            "-Djdk.attach.allowAttachSelf=true",
            f"--patch-module=java.base={bridge}",
            "--add-exports=java.base/org.elasticsearch.entitlement.bridge="
            "org.elasticsearch.entitlement,java.logging,java.net.http,java.naming,jdk.net,jdk.zipfs,"
            "jdk.management.agent",
            "--add-modules=jdk.incubator.vector,jdk.net,jdk.management.agent,ALL-MODULE-PATH",
        ]
        main = "org.elasticsearch.server/org.elasticsearch.bootstrap.Elasticsearch"
        return [jdk.java, *options, *compiler, *tags, "--module-path", str(lib), "-m", main]

    def environment(self) -> dict[str, str]:
        """Return the server's whole environment."""
        temporary = str(self.temporary)
        return java_environment(self.temporary) | {"LIBFFI_TMPDIR": temporary, "ES_TMPDIR": temporary}

    def server_arguments(self, settings: dict[str, str]) -> bytes:
        """Return the bytes that the server reads from its standard input before it starts.

        They are org.elasticsearch.bootstrap.ServerArgs in the stream format of 9.5: daemonize, quiet, no pid file, a
        key store (format 7, no password) that is empty or holds the two passwords of security, the node settings, and
        the folders of settings and logs. A daemonized server closes its standard streams when it is ready. It does not
        watch its parent; our guardian does.
        """

        def string(text: str) -> bytes:
            encoded = text.encode("utf-16-be")
            units = struct.unpack(f">{len(encoded) // 2}H", encoded)
            return _variable_int(len(units)) + b"".join(_code_unit(unit) for unit in units)

        flags = bytes([True, False, False])
        key_store = string("org.elasticsearch.common.settings.KeyStoreWrapper") + struct.pack(">i", 7) + bytes(2)
        kept = self._passwords()
        key_store += _variable_int(len(kept))
        for name, password in kept.items():
            # KeyStoreWrapper.Entry: the value, and its SHA-256.
            value, digest = password.encode(), hashlib.sha256(password.encode()).digest()
            key_store += string(name) + _variable_int(len(value)) + value + _variable_int(len(digest)) + digest
        key_store += bytes(1)
        pairs = b"".join(string(name) + bytes(1) + string(value) for name, value in sorted(settings.items()))
        return (
            flags
            + key_store
            + _variable_int(len(settings))
            + pairs
            + string(str(self.configuration))
            + string(str(self.logs))
        )

    def _passwords(self) -> dict[str, str]:
        if self._security is None:
            return {}
        return {
            "bootstrap.password": self._security.engine_password.read_text().strip(),
            "xpack.security.http.ssl.keystore.secure_password": self._security.store_password(),
        }


def open_directory(directory: Path, account: ProcessUser | None) -> Path:
    """Return the directory, or one in the system's temporary folder if the account cannot enter the first.

    Elasticsearch runs as the user nobody if we are root, and nobody cannot enter root's home. This function makes no
    folder (see `make_open`).
    Raises ProvisionError if the account cannot enter the second directory either, or if another user owns it.
    """
    if can_enter(directory.parent if not directory.exists() else directory, account):
        return directory
    name = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
    fallback = Path(tempfile.gettempdir()) / f"searchloop-{name}"
    if fallback.is_symlink() or (fallback.exists() and fallback.stat().st_uid != os.geteuid()):
        raise ProvisionError(f"{fallback} belongs to another user; remove it, or set TMPDIR to your own folder")
    if not can_enter(fallback if fallback.exists() else fallback.parent, account):
        raise ProvisionError(
            f"Elasticsearch runs as the user nobody if we are root, but this user can enter neither {directory} nor "
            f"{fallback}. Name a --home and a SEARCHLOOP_CACHE that every user may enter, or do not run as root"
        )
    return fallback


def make_open(directory: Path) -> None:
    """Make a directory that every user may enter, regardless of our umask; an existing one stays unchanged."""
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o755)


def install_plugin(installation: Path, *, version: str, jdk: Jdk) -> None:
    """Compile our analysis plugin against the distribution's jars and put it into its plugins folder.

    Raises ProvisionError with the compiler's output if the plugin does not compile.
    """
    plugin = installation / "plugins" / "searchloop-analysis"
    plugin.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as classes:
        command = [jdk.javac, "--release", str(PLUGIN_RELEASE), "-d", classes, "-cp", f"{installation}/lib/*"]
        compiled = subprocess.run([*command, str(PLUGIN_SOURCE)], capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise ProvisionError(f"the analysis plugin did not compile with {jdk.javac}: {compiled.stderr.strip()}")
        with zipfile.ZipFile(plugin / "searchloop-analysis.jar", "w", zipfile.ZIP_DEFLATED) as jar:
            for path in sorted(Path(classes).rglob("*.class")):
                jar.write(path, path.relative_to(classes))
    (plugin / "plugin-descriptor.properties").write_text(
        PLUGIN_DESCRIPTOR.format(version=version, release=PLUGIN_RELEASE)
    )


def _unpack(archive: Path, target: Path, modules_left_out: tuple[str, ...]) -> Path:
    """Unpack the distribution without `modules_left_out`; return its root."""
    with zipfile.ZipFile(archive) as distribution:
        names = distribution.namelist()
        root = names[0].split("/")[0]
        left_out = tuple(f"{root}/modules/{module}/" for module in modules_left_out)
        distribution.extractall(target, [name for name in names if not name.startswith(left_out)])
    return target / root


def _open_for_reading(root: Path) -> None:
    """Let every user read the installation, and only its owner write it."""
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for name in files:
            (Path(folder) / name).chmod(0o644)


def _variable_int(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _code_unit(unit: int) -> bytes:
    """Encode one UTF-16 code unit as StreamOutput.writeString does."""
    if unit <= 0x7F:
        return bytes([unit])
    if unit > 0x07FF:
        return bytes([0xE0 | unit >> 12 & 0x0F, 0x80 | unit >> 6 & 0x3F, 0x80 | unit & 0x3F])
    return bytes([0xC0 | unit >> 6 & 0x1F, 0x80 | unit & 0x3F])
