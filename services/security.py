"""Security of the embedded services: a certificate authority, certificates, and a user for each role.

Everything is in one folder of the home that only its owner may enter. The tools of the JDK make the certificates. The
tools get secrets through the environment or a file, never through their command line, which every user can read.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from services.errors import ProvisionError
from services.jdks import Jdk
from streams.acls import OPERATOR, ROLES

BROKER = "searchloop-broker"  # The name in the broker's certificate; its controller knows the broker by this name.
ENGINE = "searchloop-elasticsearch"
MECHANISM = "SCRAM-SHA-512"
VALID_DAYS = "3650"
HOSTS = "san=ip:127.0.0.1,dns:localhost"
TOOL_SECONDS = 60.0
PASSWORD = "SEARCHLOOP_STORE"  # The variable that gives keytool the password of its stores.


class SecurityFolder:
    """The paths of one home's security; a home has security from its first `up --secure` on."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "services" / "security"
        self.authority = self.directory / "ca.pem"
        self.stores = self.directory / "stores.properties"
        self.kafka = self.directory / "kafka"
        self.elasticsearch = self.directory / "elasticsearch"
        self.engine_password = self.directory / "elastic.password"

    @property
    def exists(self) -> bool:
        """Return whether the security was made completely; the authority's certificate is written last."""
        return self.authority.is_file()

    def store(self, name: str) -> Path:
        """Return the path of the key store of the service with this name."""
        return self.directory / f"{name}.p12"

    def make(self, jdk: Jdk) -> None:
        """Make the authority, certificates and passwords; do nothing if they exist.

        Raises ProvisionError with the tool's output if one cannot be made.
        """
        if self.exists:
            return
        for folder in (self.directory, self.kafka, self.elasticsearch):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        password = secrets.token_urlsafe(24)
        keytool = Path(jdk.java).with_name("keytool")
        authority = self.directory / "authority.p12"
        for leftover in (authority, self.store(BROKER), self.store(ENGINE)):  # Files of an interrupted start.
            leftover.unlink(missing_ok=True)
        pair = ["-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", VALID_DAYS]
        ours = ["-keystore", str(authority), "-storetype", "PKCS12"]
        _run(keytool, [*pair, "-alias", "ca", "-dname", "CN=searchloop", "-ext", "bc:c=ca:true", *ours], password)
        for name in (BROKER, ENGINE):
            signed = ["-signer", "ca", "-dname", f"CN={name}", "-ext", HOSTS]
            _run(keytool, [*pair, "-alias", name, *signed, *ours], password)
            moved = ["-importkeystore", "-srckeystore", str(authority), "-srcalias", name, "-srcstoretype", "PKCS12"]
            target = ["-destkeystore", str(self.store(name)), "-deststoretype", "PKCS12", "-noprompt"]
            _run(keytool, [*moved, *target, "-srcstorepass:env", PASSWORD, "-deststorepass:env", PASSWORD], password)
        write_private(self.stores, f"password={password}\n")
        write_private(self.engine_password, secrets.token_urlsafe(24) + "\n")
        for role in ROLES:
            content = f'sasl_username = "{role}"\nsasl_password = "{secrets.token_urlsafe(24)}"\n'
            write_private(self.kafka / f"{role}.toml", content)
        certificate = _run(keytool, ["-exportcert", "-rfc", "-alias", "ca", *ours], password)
        authority.unlink()  # It never signs again; a lost folder is made anew.
        for store in (self.store(BROKER), self.store(ENGINE)):
            store.chmod(0o600)
        aside = self.authority.with_suffix(".aside")
        aside.write_text(certificate)
        aside.replace(self.authority)

    def store_password(self) -> str:
        """Return the password of the key stores."""
        return self.stores.read_text().strip().removeprefix("password=")

    def keep_engine_key(self, role: str, api_key: str) -> None:
        """Store the API key of a role."""
        write_private(self.elasticsearch / f"{role}.toml", f'api_key = "{api_key}"\n')


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    aside = path.with_name(f".{path.name}.aside")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    aside.replace(path)


def superusers() -> str:
    """Return the users with all rights: the operator, and the broker itself."""
    return f"User:{OPERATOR};User:CN={BROKER}"


def _run(keytool: Path, arguments: Sequence[str], password: str) -> str:
    # With -importkeystore the two passwords have separate options.
    own = [] if "-srcstorepass:env" in arguments else ["-storepass:env", PASSWORD]
    command = [str(keytool), *arguments, *own, "-J-XX:TieredStopAtLevel=1", "-J-Duser.language=en"]
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", PASSWORD: password}
    try:
        made = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProvisionError(f"certificates could not be made with {keytool}: {type(error).__name__}") from error
    if made.returncode:
        reason = " ".join((made.stdout + made.stderr).split())[:300]
        raise ProvisionError(f"certificates could not be made with {keytool}: {reason}")
    return made.stdout
