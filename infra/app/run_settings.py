"""The settings that a run was started with, stored in its folder for workers and served searches."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra.app.home import SETTINGS_FILE, read_settings_file
from infra.app.settings import Settings
from streams.whole_file import write_file


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a run was started with.

    index: the alias; index_version: the alias's target at the start. origin: the run whose requests or generations were
    copied into this run's topics; "" if there is none. streamed: False for a run in one process, which has no log.
    """

    run: str
    recipe: str
    index: str
    index_version: str
    seed: int
    updates: int
    settings: Settings
    origin: str = ""
    streamed: bool = True


def write_run_settings(run_dir: Path, settings: RunSettings) -> None:
    """Write the run's settings to its folder, without the secrets and addresses of the services."""
    public = msgspec.structs.replace(
        settings.settings,
        kafka=type(settings.settings.kafka)(
            partitions=settings.settings.kafka.partitions, replication=settings.settings.kafka.replication
        ),
        elasticsearch=type(settings.settings.elasticsearch)(),
        serve=type(settings.settings.serve)(),
        ui=type(settings.settings.ui)(),
        alerts=type(settings.settings.alerts)(),
        store=type(settings.settings.store)(),
        vllm=msgspec.structs.replace(
            settings.settings.vllm, url="", api_key="", api_key_file="", ca_certs="", home="", allow_insecure=False
        ),
    )
    content = msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(settings, settings=public)))
    write_file(run_dir / SETTINGS_FILE, content)


def read_run_settings(run_dir: Path) -> RunSettings:
    """Return the settings that the run was started with.

    Raises SettingsError, with the names of all runs, if the run does not exist.
    """
    return read_settings_file(run_dir, RunSettings)
