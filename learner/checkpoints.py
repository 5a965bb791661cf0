"""Checkpoints: weights, optimizer, stream positions, recent groups and lineage as one atomic folder.

A checkpoint is written to a temporary folder, synced and renamed; only then does `CURRENT` point to it. The manifest
holds each file's sha256. If the process is killed in between, the previous checkpoint stays current. transformers can
load the folder as a policy, so a policy version *is* its checkpoint. The folder contains no pickle.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from streams import whole_file
from streams.errors import FULL, SearchloopError
from streams.events import PolicyRef, Update
from streams.failpoints import failpoint
from streams.names import is_name, is_version_name
from streams.topics import version_name
from streams.whole_file import file_sha256, synced_hashes, whole_folder, write_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"
CURRENT = "CURRENT"
BEST = "BEST"  # The version that served the dev queries best, if any was measured.
OPTIMIZER = "optimizer.safetensors"
NAME_BYTES_MAX = 256
LOADED = frozenset({".json", ".safetensors", ".bin", ".pt", ".model", ".jinja", ".py"})


class CheckpointError(SearchloopError, RuntimeError):
    """A checkpoint is missing, damaged, or could not be written."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a checkpoint other than its tensors.

    origin: the warmed-up policy with which the run began; None in that policy's own checkpoint.
    positions: next offset of the rewards topic, per partition. recent_groups: ids of the groups taken last, to
    recognize repeated ones.
    low_water: per partition of the requests topic, the offset below which groups are forgotten and cannot teach.
    update: the event of the step that made these weights; None for a warmed-up policy. files: sha256 by file name.
    """

    policy: PolicyRef
    parent: PolicyRef | None
    origin: PolicyRef | None = None
    positions: dict[int, int] = {}
    requests_consumed: dict[int, int] = {}
    recent_groups: tuple[str, ...] = ()
    low_water: dict[int, int] = {}
    update: Update | None = None
    files: dict[str, str] = {}


def new_lineage(parent: str | None) -> str:
    """Return a new, unique name of a lineage: a count for readers and a random part for uniqueness."""
    count = int(parent.split("-")[0]) + 1 if parent else 1
    return f"{count}-{uuid.uuid4().hex[:6]}"


def save_checkpoint(root: Path, policy: PolicyRef, write_files: Callable[[Path], Manifest]) -> Path:
    """Write a checkpoint completely or not at all, make it CURRENT, and return its folder.

    policy: gives the folder its name (its sha256 is not needed yet). write_files: a function that gets an empty folder,
    writes weights, tokenizer and optimizer into it, and returns the manifest; every file's sha256 is added here.
    Raises CheckpointError if the checkpoint cannot be written, for example on a full disk; the previous checkpoint
    stays CURRENT.
    """
    name = version_name(policy)
    target = root / name
    try:
        with whole_folder(target, replace=True) as aside:
            manifest = write_files(aside)
            content = msgspec.json.encode(msgspec.structs.replace(manifest, files=synced_hashes(aside)))
            (aside / MANIFEST).write_bytes(content)
            (aside / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest() + "\n")
        failpoint("learner.before-flip")
        write_file(root / CURRENT, f"{name}\n".encode())
        failpoint("learner.after-flip")
    except OSError as error:
        reason = "the disk is full" if error.errno in FULL else str(error)
        raise CheckpointError(
            f"checkpoint {name} could not be written to {root}: {reason}. The previous checkpoint is still CURRENT; "
            "free some disk space and start again"
        ) from error
    return target


def current_name(root: Path) -> str:
    """Return the name that CURRENT holds, "" if there is none; `load_current` says whether that checkpoint is whole."""
    return _first_bytes(root / CURRENT).strip()


def load_current(root: Path) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of the newest whole checkpoint.

    If CURRENT or its target is damaged, the newest checkpoint whose files all match their sha256 is used instead, and
    the log says so. Raises CheckpointError if there is none.
    """
    named = current_name(root)
    candidates = ([root / named] if is_version_name(named) else []) + sorted(
        (path for path in root.glob("*-*-*") if path.name != named and not path.name.startswith(".")),
        key=_written_ns,
        reverse=True,
    )
    for folder in candidates:
        try:
            manifest = read_manifest(folder, verify=True)
        except CheckpointError as error:
            log.error("%s; trying the previous checkpoint", error)
            continue
        if folder.name != named:
            log.error("CURRENT in %s names %r, which cannot be used; continuing from %s", root, named, folder.name)
        return folder, manifest
    raise CheckpointError(f"expected a whole checkpoint in {root}, found none. Run: searchloop train, which makes one")


def read_manifest(folder: Path, *, verify: bool) -> Manifest:
    """Return a checkpoint's manifest.

    verify: True checks every file against its sha256.
    Raises CheckpointError if a file is missing or has changed, or if the folder holds an unlisted file that a loader
    may read.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(content, type=Manifest)
        _check_names(folder, manifest)
        if verify:
            if hashlib.sha256(content).hexdigest() != (folder / MANIFEST_SHA256).read_text(errors="replace").strip():
                raise CheckpointError(
                    f"checkpoint {folder.name}: {MANIFEST} does not have the hash in {MANIFEST_SHA256}"
                )
            for name, expected in manifest.files.items():
                if (found := file_sha256(folder / name)) != expected:
                    raise CheckpointError(
                        f"checkpoint {folder.name}: {name} should have sha256 {expected[:12]}…, has {found[:12]}…"
                    )
            if stranger := _stranger(folder, manifest):
                raise CheckpointError(
                    f"checkpoint {folder.name}: holds {stranger}, which {MANIFEST} does not list and a loader may "
                    "read; remove it from that folder"
                )
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no manifest, or an impossible file name.
        raise CheckpointError(f"checkpoint {folder.name}: {error}") from error
    return manifest


def _stranger(folder: Path, manifest: Manifest) -> str:
    """Return the name of an unlisted file that transformers might read; "" if there is none."""
    known = {MANIFEST, MANIFEST_SHA256, *manifest.files}
    names = {path.name for path in folder.iterdir() if path.suffix in LOADED and not path.name.startswith(".")}
    return min(names - known, default="")


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError if the manifest names a version or a file by a path instead of a plain name."""
    strange = [name for name in manifest.files if not is_name(name)]
    if not is_version_name(version_name(manifest.policy)):
        strange.append(version_name(manifest.policy))
    if strange:
        raise CheckpointError(
            f"checkpoint {folder.name}: expected plain names in its manifest, got {strange[0][:NAME_BYTES_MAX]!r}"
        )


def prune_checkpoints(root: Path, *, keep: int, keep_every: int) -> list[Manifest]:
    """Delete all checkpoints except the newest `keep` and every `keep_every`-th; return the deleted ones.

    The run's first checkpoint, which no update made, always stays. So do those that CURRENT and BEST name. The newest
    are those that CURRENT descends from: a run that was set back has left checkpoints of later steps behind. A link
    and a copy under another name stay too: a person has put them there.
    """
    found = []
    for folder in root.glob("*-*-*"):
        try:
            manifest = read_manifest(folder, verify=False)
        except CheckpointError:
            continue  # A damaged checkpoint stays, for a person to inspect.
        if folder.name == version_name(manifest.policy):
            found.append((folder, manifest))
    current, best = current_name(root), best_name(root)
    chain = _chain({folder.name: manifest for folder, manifest in found}, current)
    found.sort(key=lambda item: (item[0].name in chain, item[1].policy.step, item[0].stat().st_mtime_ns))
    retired = []
    for folder, manifest in found[:-keep]:
        if folder.name in (current, best) or folder.is_symlink():
            continue
        if manifest.policy.step % keep_every and (manifest.update is not None or manifest.parent is not None):
            whole_file.remove_folder(folder)  # Half a checkpoint would look damaged, and stay for ever.
            retired.append(manifest)
    return retired


def write_best(root: Path, policy: PolicyRef) -> None:
    """Keep the name of the best version, whose checkpoint then always stays."""
    write_file(root / BEST, (version_name(policy) + "\n").encode())


def best_name(root: Path) -> str:
    """Return the name of the best version, "" if none was measured."""
    return _first_bytes(root / BEST).strip()


def _chain(manifests: Mapping[str, Manifest], name: str) -> set[str]:
    """Return the names of a checkpoint and of those that it came from, as far as they are kept."""
    chain: set[str] = set()
    while name in manifests and name not in chain:
        chain.add(name)
        parent = manifests[name].parent
        name = version_name(parent) if parent is not None else ""
    return chain


def remove_unfinished(root: Path) -> None:
    """Delete the unfinished checkpoints of killed writers; call this only as the folder's only writer."""
    whole_file.remove_unfinished(root)
    for aside in root.glob(".*.part"):  # Older versions named them so.
        if aside.is_dir():
            shutil.rmtree(aside)


def copy_checkpoint(source: Path, manifest: Manifest, root: Path) -> Path:
    """Copy a checkpoint as the start of another run, which has read no log yet; return its folder.

    The copy keeps weights, optimizer and name. It drops stream positions, recent groups and the update that made it.
    """
    begin = Manifest(policy=manifest.policy, parent=None)

    def write_files(folder: Path) -> Manifest:
        for name in manifest.files:
            shutil.copy2(source / name, folder / name)
        return begin

    return save_checkpoint(root, manifest.policy, write_files)


def _first_bytes(path: Path) -> str:
    """Return the start of a file as text, longer than any name may be; "" if the file does not exist."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return file.read(NAME_BYTES_MAX).decode(errors="replace")


def _written_ns(folder: Path) -> int:
    """Return the time of a folder's last change, in ns; 0 if the learner has deleted it since it was listed."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
