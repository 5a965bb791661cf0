"""A run's checkpoints as they lie on disk, read for the proof. Nothing in them is trusted, and nothing raises."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from learner.checkpoints import CURRENT, MANIFEST, MANIFEST_SHA256, Manifest
from learner.policy import PolicyError, weights_sha256
from storage.verification.account import Finding, one_line
from storage.verification.chain import Head
from storage.verification.checkpoints import Kept, Told
from streams.codec import encode_event
from streams.errors import EventError
from streams.whole_file import file_sha256

NAME_BYTES_MAX = 256
OWN = frozenset({MANIFEST, MANIFEST_SHA256})


def read_kept(checkpoints: Path) -> list[Kept]:
    """Return every checkpoint in the folder, oldest first. A checkpoint that is deleted meanwhile is left out."""
    folders = [path for path in checkpoints.glob("*-*-*") if path.is_dir() and not path.name.startswith(".")]
    found = [_read(folder) for folder in sorted(folders, key=_written_ns)]
    return [each for each in found if each is not None]


def read_head(
    checkpoints: Path, kept: Sequence[Kept], *, staleness_max: int | None
) -> tuple[Head | None, list[Finding]]:
    """Return the head that the newest whole checkpoint states, and a finding if CURRENT does not name it.

    The choice is that of `learner.checkpoints.load_current`: the checkpoint that CURRENT names, or else the newest
    whole one.
    """
    named = _first_bytes(checkpoints / CURRENT).strip()
    whole = [each for each in kept if each.told is not None and not each.damage]
    found = next((each for each in whole if each.name == named), whole[-1] if whole else None)
    where = str(checkpoints / CURRENT)
    if found is None or found.told is None:
        what = "expected a whole checkpoint, found none"
        return None, [Finding(rule="checkpoints", where=str(checkpoints), what=what)]
    head = Head(
        policy=found.told.policy,
        update=found.told.update,
        positions=found.told.positions,
        staleness_max=staleness_max,
        origins=tuple(each.told.policy for each in kept if each.told is not None and each.told.parent is None),
    )
    if found.name == named:
        return head, []
    what = f"names {named!r}, which is missing or damaged; {found.name} is the newest whole checkpoint"
    return head, [Finding(rule="checkpoints", where=where, what=what)]


def _read(folder: Path) -> Kept | None:
    """Return one checkpoint, or None if its folder is gone."""
    damage: list[str] = []
    content, manifest = b"", None
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = _sound(msgspec.json.decode(content, type=Manifest))
    except (OSError, ValueError, RecursionError, EventError) as error:
        manifest = None
        damage.append(f"{MANIFEST}: {one_line(error)}")
    sha256 = hashlib.sha256(content).hexdigest() if content else None
    if sha256 is not None and _first_bytes(folder / MANIFEST_SHA256).strip() != sha256:
        damage.append(f"{MANIFEST} does not have the hash in {MANIFEST_SHA256}")
    if manifest is not None:
        damage += _wrong_files(folder, manifest.files)
    weights = None
    try:
        weights = weights_sha256(folder)
    except (PolicyError, OSError) as error:
        damage.append(one_line(error))
    if not folder.is_dir():
        return None  # The learner has just deleted it.
    told = None
    if manifest is not None:
        told = Told(
            policy=manifest.policy,
            parent=manifest.parent,
            update=manifest.update,
            positions=manifest.positions,
            requests_consumed=manifest.requests_consumed,
            recent_groups=manifest.recent_groups,
        )
    return Kept(name=folder.name, damage=tuple(damage), manifest_sha256=sha256, told=told, weights_sha256=weights)


def _sound(manifest: Manifest) -> Manifest:
    """Return the manifest. Raises ValueError or EventError for numbers that no learner writes and no table can hold."""
    numbers = [manifest.policy.step, *([manifest.parent.step] if manifest.parent else [])]
    tables = [manifest.positions, manifest.requests_consumed, manifest.low_water]
    if manifest.update is not None:
        encode_event(manifest.update)
        numbers += [manifest.update.policy.step, manifest.update.parent.step]
        tables += [manifest.update.positions, manifest.update.requests_consumed]
    numbers += [number for table in tables for pair in table.items() for number in pair]
    if wrong := [number for number in numbers if not 0 <= number <= sys.maxsize]:
        raise ValueError(f"expected steps and positions from 0 to {sys.maxsize}, got {wrong[0]}")
    return manifest


def _wrong_files(folder: Path, listed: dict[str, str]) -> list[str]:
    wrong = []
    for name, expected in listed.items():
        try:
            if Path(name).name != name:
                raise ValueError("expected a file's name, got a path")
            found = file_sha256(folder / name)
        except (OSError, ValueError) as error:
            wrong.append(f"{name!r}: {one_line(error)}")
            continue
        if found != expected:
            wrong.append(f"{name} should have sha256 {expected[:12]}…, has {found[:12]}…")
    there = {path.name for path in folder.glob("*") if not path.name.startswith(".")}
    wrong += [f"{name!r} is not listed in {MANIFEST}" for name in sorted(there - OWN - set(listed))]
    return wrong


def _first_bytes(path: Path) -> str:
    """Return the beginning of a file as text, longer than any name can be; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(NAME_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""


def _written_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
