"""The versions of an index's relevance model: every fit is kept under its name, as a policy version is.

The folder of the model holds the newest one itself. `versions/NAME` holds each, and `labels/LABEL` names one. A name is
a hash of what the model computes, so a version never changes; a label may be given again.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from search_env.models.relevance import GrownModel, RelevanceError, RelevanceManifest
from search_env.models.relevance_files import save_gbdt
from streams.whole_file import write_file

VERSIONS = "versions"
LABELS = "labels"
LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
NAME = re.compile(r"gbdt-[0-9a-f]{12}")


def keep_version(folder: Path, grown: GrownModel, *, label: str = "") -> str:
    """Keep a model as a version and return its name.

    label: names this version from now on, and leaves the newest model as it is. Without a label, the version becomes
    the newest, and an older one that is no version yet becomes one.
    """
    name = grown.manifest.name
    _save(folder / VERSIONS / name, grown)
    if label:
        write_file(folder / LABELS / label, f"{name}\n".encode())
        return name
    if (folder / "manifest.json").is_file():
        keep_newest(folder)
    save_gbdt(folder, grown)
    return name


def keep_newest(folder: Path) -> str:
    """Keep the newest model as a version, unless it is one already, and return its name.

    Raises RelevanceError if it is damaged.
    """
    name = read_relevance_manifest(folder).name
    target = folder / VERSIONS / name
    if not (target / "manifest.json").is_file():
        for path in sorted(folder.glob("*.txt")):
            write_file(target / path.name, path.read_bytes())
        write_file(target / "manifest.json", (folder / "manifest.json").read_bytes())
    return name


def version_folder(folder: Path, version: str) -> Path:
    """Return the folder of a version, by its name or its label; "" gives the folder of the newest.

    Raises RelevanceError, with the known ones, if there is no such version.
    """
    if not version:
        return folder
    name = version
    if not NAME.fullmatch(version) and LABEL.fullmatch(version) and (folder / LABELS / version).is_file():
        name = (folder / LABELS / version).read_text().strip()
    found = folder / VERSIONS / name
    if NAME.fullmatch(name) and (found / "manifest.json").is_file():
        return found
    if (folder / "manifest.json").is_file() and read_relevance_manifest(folder).name == name:
        return folder
    known = [name for of in (LABELS, VERSIONS) for name in sorted(path.name for path in (folder / of).glob("[!.]*"))]
    raise RelevanceError(
        f"relevance.version: expected one of {', '.join(known) or '(there are none yet)'}, got {version[:70]!r}. "
        "Run: searchloop relevance"
    )


def _save(target: Path, grown: GrownModel) -> None:
    if not (target / "manifest.json").is_file():  # The manifest comes last, so a version with one is whole.
        save_gbdt(target, grown)


def read_relevance_manifest(folder: Path) -> RelevanceManifest:
    """Return the manifest of the model in a folder. Raises RelevanceError if it is damaged."""
    try:
        return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=RelevanceManifest)
    except (OSError, msgspec.DecodeError) as error:
        raise RelevanceError(f"{folder}: damaged relevance model ({error}). Run: searchloop relevance") from error
