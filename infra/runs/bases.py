"""The base of an adapter goes with it into another run, if it lies in the run's own folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from learner.policy import ADAPTER_CONFIG, read_adapter
from streams.whole_file import whole_folder


def carry_base(checkpoint: Path, source: Path, target: Path) -> None:
    """Copy the base of a checkpoint's adapter from a run's folder to the same place in another run's.

    An adapter names its base relative to its own folder, so a copy of the adapter looks for it there. A base outside of
    the run's folder is found from every run, and is not copied.
    """
    if not (checkpoint / ADAPTER_CONFIG).is_file():
        return
    base, source = read_adapter(checkpoint).base, source.absolute()
    if not base.is_relative_to(source):
        return
    place = target / base.relative_to(source)
    if place.exists():
        return
    with whole_folder(place) as aside:
        shutil.copytree(base, aside, dirs_exist_ok=True)
