"""Export of a run's log for other tools: Parquet files of the ledger's views, and TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from storage.curves import curves
from storage.errors import StorageError
from storage.log import Log
from storage.view_files import write_views
from streams.errors import SettingsError
from streams.whole_file import whole_folder

Say = Callable[[str], None]


def export_parquet(log: Log, folder: Path, say: Say) -> None:
    """Write each view of a run's ledger to a Parquet file in a new folder.

    Raises SettingsError if the folder exists, StorageError if it cannot be written.
    """
    _require_new(folder, "--parquet")
    try:
        with whole_folder(folder) as aside:
            written = dict(write_views(log, aside))
    except OSError as error:
        raise _unwritten(folder, error) from error
    say(f"wrote {len(written)} views to {folder}: {sum(written.values()):,} rows")


def export_tensorboard(log: Log, run: str, folder: Path, say: Say) -> None:
    """Write rewards, metrics of updates and dev scores as event files to `folder/RUN`; `folder` is new.

    Raises SettingsError if the folder exists or the library is missing, StorageError if it cannot be written.
    """
    _require_new(folder, "--tensorboard")
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise SettingsError(
            "--tensorboard: expected the library tensorboardX, found none. Run: pip install 'searchloop[tensorboard]'"
        ) from error
    names = set()
    try:
        with whole_folder(folder) as aside:
            writer = SummaryWriter(str(aside / run), write_to_disk=True)
            for point in curves(log):
                writer.add_scalar(point.name, point.value, global_step=point.step, walltime=point.at)
                names.add(point.name)
            writer.close()
    except OSError as error:
        raise _unwritten(folder, error) from error
    say(f"wrote {len(names)} curves to {folder}. Look at them with: tensorboard --logdir {folder}")


def _require_new(folder: Path, option: str) -> None:
    if folder.exists():
        raise SettingsError(f"{option}: expected a new folder, but {folder} exists. Choose another name")


def _unwritten(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder}: cannot be written ({error.strerror or error}); choose another place")
