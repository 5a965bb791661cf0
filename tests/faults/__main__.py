"""Every fault of the matrix, one after the other: `make faults`.

What is done is kept in the home directory, so a stopped driver goes on where it was, for the long ones also within a
fault. It ends with one table, and with 1 if anything broke.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console

from tests.faults.brokers import cut_off_leaders, kill_leaders
from tests.faults.clocks import shift_clocks
from tests.faults.damage import flip_checkpoints, flip_ledger
from tests.faults.disks import fill_disks
from tests.faults.engine import FAULTS, engine_down, engine_harmed
from tests.faults.freezes import freeze_workers
from tests.faults.harmed_logs import add_partitions, forget_offsets, poison_rewards
from tests.faults.kills import kill_workers
from tests.faults.late import repeat_events
from tests.faults.machines import cut_machines_off
from tests.faults.patience import outlast_patience
from tests.faults.results import Journal, Row, markdown, table
from tests.faults.services import kill_service
from tests.faults.world import World, open_world

OUTAGES_SECONDS = (5, 60, 600)


class Doses(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long; the defaults are the matrix's own.

    kills: of each worker. rare: kills of a service, freezes, and machines cut off. seconds: how long a worker is
    frozen. flips: of bits, in each kind of file. events: in the repeated and reordered log.
    """

    kills: int = 100
    rare: int = 20
    seconds: float = 60.0
    flips: int = 100
    events: int = 100_000


def in_files(doses: Doses) -> dict[str, Callable[[], list[Row]]]:
    """Return the faults that need no service, by the name that `--only` takes."""
    return {
        "flips-checkpoint": lambda: flip_checkpoints(dose=doses.flips),
        "flips-ledger": lambda: flip_ledger(dose=doses.flips),
        "disk-full": fill_disks,
        "late": lambda: repeat_events(events=doses.events),
    }


def in_loops(doses: Doses) -> dict[str, Callable[[World], list[Row]]]:
    """Return the faults that are done to a running loop, by the name that `--only` takes."""
    outages = {
        f"engine-down-{seconds}": lambda world, seconds=seconds: engine_down(world, seconds=seconds)
        for seconds in OUTAGES_SECONDS
    }
    harms = {
        f"engine-{mode}": lambda world, mode=mode, name=name: engine_harmed(world, mode=mode, name=name)
        for mode, name in FAULTS
    }
    return {
        "kills": lambda world: kill_workers(world, dose=doses.kills),
        **outages,
        **harms,
        "patience": lambda world: outlast_patience(world, dose=doses.rare),
        "offsets": lambda world: forget_offsets(world, dose=doses.rare),
        "partitions": lambda world: add_partitions(world, dose=doses.rare),
        "poison": lambda world: poison_rewards(world, dose=doses.rare),
        "clocks": shift_clocks,
        "freezes": lambda world: freeze_workers(world, dose=doses.rare, seconds=doses.seconds),
        "kafka": lambda world: kill_service(world, service="kafka", name="kill -9 broker", dose=doses.rare),
        "elasticsearch": lambda world: kill_service(
            world, service="elasticsearch", name="kill -9 Elasticsearch", dose=doses.rare
        ),
        "leaders": lambda world: kill_leaders(world, dose=doses.rare),
        "network": lambda world: cut_off_leaders(world, dose=doses.rare),
        "machines": lambda world: cut_machines_off(world, dose=doses.rare),
    }


def main() -> None:
    """Give every fault its dose, leave out what is done, and end with the table; exit with 1 if the contract broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".searchloop-faults"), help="where runs and results lie")
    parser.add_argument("--kills", type=int, default=Doses().kills, help="how often each worker is killed")
    parser.add_argument("--rare", type=int, default=Doses().rare, help="how often a service is killed, a worker frozen")
    parser.add_argument("--seconds", type=float, default=Doses().seconds, help="how long a worker is frozen")
    parser.add_argument("--flips", type=int, default=Doses().flips, help="how many bits are flipped in each file")
    parser.add_argument("--events", type=int, default=Doses().events, help="how many events are repeated and reordered")
    parser.add_argument("--only", action="append", default=[], help="one fault to do, by name; may be given again")
    parser.add_argument("--markdown", action="store_true", help="print what is done so far for a page, and do nothing")
    options = parser.parse_args()
    home = options.home.absolute()
    journal = Journal(home / "faults.jsonl", Row)
    if options.markdown:
        print(markdown(journal.read()))
        return
    doses = Doses(
        kills=options.kills, rare=options.rare, seconds=options.seconds, flips=options.flips, events=options.events
    )
    done = home / "done"
    done.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)  # Elasticsearch runs as another user where this one is root.
    console = Console()

    def note(name: str, rows: list[Row]) -> None:
        for row in rows:
            journal.add(row)
        (done / name).touch()
        console.print(table(rows))

    def left(names: list[str]) -> list[str]:
        return [name for name in names if name in (options.only or names) and not (done / name).exists()]

    files, loops = in_files(doses), in_loops(doses)
    if unknown := set(options.only) - {*files, *loops}:
        parser.error(f"--only: expected some of {', '.join([*files, *loops])}, got {', '.join(unknown)}")
    for name in left(list(files)):
        note(name, files[name]())
    if left(list(loops)):
        with open_world(home) as world:
            for name in left(list(loops)):
                note(name, loops[name](world))
    console.print(table(journal.read()))
    if any(row.broken for row in journal.read()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
