"""The files of a run's alerts: silences, and the record of every change, in `RUN/alerts/`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from infra.app.home import RunFolder, read_settings_file
from infra.monitoring.alert_settings import AlertSettings
from learner.batches import BatchSettings
from storage.monitor.alert_states import Silence, Transition
from storage.monitor.backtesting import Label
from storage.monitor.rules import AlertRule, read_rules
from streams.errors import InputError, SettingsError
from streams.whole_file import write_file

FOLDER = "alerts"
SILENCES = "silences.json"
TRANSITIONS = "transitions.jsonl"
LABELS_BYTES_MAX = 16 * 1024 * 1024


class AlertTables(msgspec.Struct, frozen=True, kw_only=True):
    """The table of a run's settings that alerts need."""

    batch: BatchSettings = BatchSettings()


class AlertRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that alerts need."""

    settings: AlertTables = AlertTables()


def staleness_limit(run_dir: RunFolder) -> int:
    """Return the staleness limit of a run; that of the defaults if the run was started without settings."""
    if not run_dir.settings_file.exists():
        return BatchSettings().staleness_max
    return read_settings_file(run_dir, AlertRun).settings.batch.staleness_max


def alert_rules(settings: AlertSettings, path: Path | None = None) -> tuple[AlertRule, ...]:
    """Return the rules that apply: the built-in ones, with a file over them. path: in place of the settings' own."""
    return read_rules(path or (Path(settings.rules) if settings.rules else None))


def read_silences(run_dir: Path) -> tuple[Silence, ...]:
    """Return the silences of a run, past ones included. Raises SettingsError if the file is damaged."""
    path = run_dir / FOLDER / SILENCES
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Silence, ...])
    except FileNotFoundError:
        return ()
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: expected a list of silences, got: {error}. Remove the file to end all") from error


def write_silence(run_dir: Path, silence: Silence, *, now_ms: int) -> None:
    """Add a silence, in the place of the rule's earlier one; past ones are dropped. `until_ms` in the past ends it."""
    others = [each for each in read_silences(run_dir) if each.rule != silence.rule and each.until_ms > now_ms]
    kept = [*others, *([silence] if silence.until_ms > now_ms else [])]
    write_file(run_dir / FOLDER / SILENCES, msgspec.json.format(msgspec.json.encode(kept)))


def append_transitions(run_dir: Path, found: Sequence[Transition]) -> None:
    """Append records to the run's file of changes."""
    if not found:
        return
    path = run_dir / FOLDER / TRANSITIONS
    path.parent.mkdir(exist_ok=True)
    with path.open("a+b") as file:
        cut = file.seek(0, os.SEEK_END) and not _ends_a_line(file)  # By a crash, in the middle of a line.
        file.write((b"\n" if cut else b"") + b"".join(msgspec.json.encode(each) + b"\n" for each in found))


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_transitions(run_dir: Path) -> list[Transition]:
    """Return the recorded changes, oldest first; a line that was cut by a crash is left out."""
    path = run_dir / FOLDER / TRANSITIONS
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Transition))
        except (ValueError, RecursionError):
            continue
    return found


def read_labels(path: Path, *, rules: Iterable[str]) -> list[Label]:
    """Return the labelled faults of a TOML file ([[fault]] tables) or a JSON file ({"fault": [...]}).

    Each has name, from, until and perhaps rules. Times: as in ISO 8601, or milliseconds since the epoch.
    Raises InputError that names the file, the fault, the field, and what was expected and found.
    """
    try:
        if path.stat().st_size > LABELS_BYTES_MAX:
            raise InputError(f"{path}: expected at most {LABELS_BYTES_MAX:,} bytes of labels, got a larger file")
        if not path.is_file():
            raise InputError(f"{path}: expected a TOML or JSON file of labels, got no regular file")
        raw = path.read_bytes()
        given: Any = msgspec.json.decode(raw) if path.suffix == ".json" else tomllib.loads(raw.decode())
    except OSError as error:
        raise InputError(f"{path}: expected a file of labels ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected TOML, or JSON in a file named .json, got: {error}") from error
    faults = given.get("fault") if isinstance(given, dict) else None
    if not isinstance(faults, list) or not faults:
        raise InputError(f"{path}: expected [[fault]] tables with name, from and until, got none")
    return [_label(each, f"{path}: fault {number}", frozenset(rules)) for number, each in enumerate(faults, start=1)]


def _label(given: Any, where: str, known: frozenset[str]) -> Label:
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected a table with name, from and until, got {given!r}")
    if extra := sorted(set(given) - {"name", "from", "until", "rules"}):
        raise InputError(f"{where}: {extra[0]}: unknown field; expected name, from, until and rules")
    name, rules = given.get("name"), given.get("rules", [])
    if not isinstance(name, str):
        raise InputError(f"{where}, name: expected a text, got {name!r}")
    if not isinstance(rules, list) or not all(isinstance(rule, str) for rule in rules):
        raise InputError(f"{where}, rules: expected a list of names of rules, got {rules!r}")
    if unknown := sorted(set(rules) - known):
        raise InputError(f"{where}, rules: expected some of {', '.join(sorted(known))}, got {unknown[0]!r}")
    from_ms, until_ms = _moment(given.get("from"), f"{where}, from"), _moment(given.get("until"), f"{where}, until")
    if until_ms < from_ms:
        raise InputError(f"{where}, until: expected a time after from, got an earlier one")
    return Label(fault=name, from_ms=from_ms, until_ms=until_ms, rules=tuple(rules))


def _moment(given: Any, where: str) -> int:
    said = f"{where}: expected a time such as 2026-01-31T08:00:00Z, or milliseconds since the epoch, got {given!r}"
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given)
        except ValueError as error:
            raise InputError(said) from error
    if isinstance(given, date) and not isinstance(given, datetime):
        given = datetime(given.year, given.month, given.day, tzinfo=UTC)
    try:
        if isinstance(given, datetime):
            return round(given.astimezone().timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InputError(said) from error
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 1 << 62:
        return given
    raise InputError(said)
