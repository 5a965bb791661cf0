"""axe-core, which checks a page for accessibility: one pinned version, fetched once with npm, kept in the cache.

Only tests use it (MPL-2.0), so it is neither in the wheel nor in the repository. npm decides where packages come from.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from services.artefacts import cache_directory, cache_lock
from streams.whole_file import write_file
from tests.browser.devtools import DevtoolsPage

AXE_VERSION = "4.14.1"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"  # Of axe.min.js.
WANTED = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def axe_script() -> str:
    """Return axe's script, from the cache or from npm. Fails, and says what to do, if it cannot be had."""
    cache = cache_directory()
    kept = cache / "axe" / AXE_VERSION / "axe.min.js"
    if not kept.is_file():
        with cache_lock(cache):
            if not kept.is_file():
                content = _fetched()
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_file(kept, content)
    content = kept.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    assert found == AXE_SHA256, f"{kept}: expected sha256 {AXE_SHA256}, got {found}; remove the file"
    return content.decode()


def _fetched() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail(f"this test needs axe-core {AXE_VERSION}: install npm, which fetches it once")
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [npm, "pack", f"axe-core@{AXE_VERSION}", "--pack-destination", folder],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if ended.returncode:
            pytest.fail(f"npm did not give axe-core {AXE_VERSION}; it needs the network once: {ended.stderr[-500:]}")
        with tarfile.open(Path(folder) / f"axe-core-{AXE_VERSION}.tgz") as packed:
            member = packed.extractfile("package/axe.min.js")
            assert member is not None
            return member.read()


def violations(page: DevtoolsPage) -> list[str]:
    """Return what axe finds wrong with the page, a line for each element."""
    page.value(f"{axe_script()}; true")
    found: list[dict[str, Any]] = page.value(
        f"axe.run(document, {{runOnly: {WANTED}}}).then(found => found.violations)"
    )
    return [f"{rule['id']}: {rule['help']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
