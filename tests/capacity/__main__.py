"""Say what a cluster would do, from measured service times.

python -m tests.capacity                                   the cluster of infra/CAPACITY.md, from the kept figures
python -m tests.capacity measure LEDGER CYCLE.json         read the service times anew, and keep them
python -m tests.capacity compare LEDGER --staleness N      another run of this machine against its simulation
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.capacity.calibration import Calibration, calibrate
from tests.capacity.model import Outcome, Plant, Service, simulate

KEPT = Path(__file__).with_name("measured.json")
SEEDS = range(5)
MILLION = 1_000_000

# Assumed, because nothing here has a GPU. Learning: prime-rl's LoRA of rank 16 on a 0.6B model, one H100. Writing: a
# cautious figure for one vLLM of such a model with many prompts at once, and the time from an answer to its last token.
LEARNER_TOKENS_PER_SECOND = 13_300
WRITER_TOKENS_PER_SECOND = 5_000
ANSWER_SECONDS = 0.5
CHECKPOINT_SECONDS = 1.0  # Adapter, optimizer and manifest into an object store, and the announcement.
SPREAD = 0.3


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: times by the clock of a run and of its halves, and processor milliseconds of an update."""

    clock: Calibration
    halves: tuple[Calibration, Calibration]
    processor_ms_per_update: dict[str, float]
    parts_ms_per_update: dict[str, float]
    load_average: float

    def processor(self, role: str) -> float:
        """Return the processor seconds of one group."""
        return self.processor_ms_per_update[role] / 1000 / self.clock.groups


def main() -> None:
    """Print the table that the command asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    measure = verbs.add_parser("measure")
    measure.add_argument("ledger", type=Path)
    measure.add_argument("cycle", type=Path, help="the JSON line of tests/benchmarks/cycle.py")
    measure.add_argument("--half", type=int, default=45, help="update that parts the run into two halves")
    compare = verbs.add_parser("compare")
    compare.add_argument("ledger", type=Path)
    compare.add_argument("--staleness", type=int, required=True)
    for each in (measure, compare):
        each.add_argument("--from-update", type=int, default=10)
    options = parser.parse_args()
    if options.verb == "measure":
        cycle = msgspec.json.decode(options.cycle.read_text().strip().splitlines()[-1])
        kept = Measured(
            clock=calibrate(options.ledger, from_update=options.from_update),
            halves=(
                calibrate(options.ledger, from_update=options.from_update, until_update=options.half),
                calibrate(options.ledger, from_update=options.half),
            ),
            processor_ms_per_update=cycle["processor_ms_per_update"],
            parts_ms_per_update=cycle["parts_ms_per_update"],
            load_average=cycle["load_average"],
        )
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
    measured = msgspec.json.decode(KEPT.read_bytes(), type=Measured)
    if options.verb == "compare":
        show_comparison(measured.clock, calibrate(options.ledger, from_update=options.from_update), options.staleness)
        return
    show_cost(measured)
    show_comparison(measured.clock, measured.clock, 1)
    show_comparison(measured.halves[0], measured.halves[1], 1)
    show_cluster(measured)


def this_machine(times: Calibration, *, staleness_max: int) -> Plant:
    """Return the plant of a run on one machine: one worker for each stage, one partition."""
    return Plant(
        partitions=1,
        generators=1,
        environments=1,
        groups=times.groups,
        staleness_max=staleness_max,
        generate=times.generate,
        score=times.score,
        learn=times.learn,
        hop=times.hop,
    )


def cluster(measured: Measured) -> Plant:
    """Return the plant of infra/CAPACITY.md: 100 partitions, 50 environments, 8 GPUs, one of which learns."""
    clock = measured.clock
    read = clock.prompt_tokens + clock.candidates * clock.completion_tokens
    written = clock.candidates * clock.completion_tokens
    return Plant(
        partitions=100,
        generators=7,
        environments=50,
        groups=256,
        staleness_max=2,
        generate=Service(base=ANSWER_SECONDS, each=written / WRITER_TOKENS_PER_SECOND, spread=SPREAD),
        score=Service(base=0.0, each=measured.processor("environment"), spread=SPREAD),
        learn=Service(base=CHECKPOINT_SECONDS, each=read / LEARNER_TOKENS_PER_SECOND),
        engine=measured.processor("elasticsearch"),
        engine_cores=16,
        hop=0.05,
        chunk=32,
    )


def changes(plant: Plant) -> Iterator[tuple[str, Plant]]:
    """Yield the plant with one resource changed at a time."""

    def but(**fields: Any) -> Plant:
        return msgspec.structs.replace(plant, **fields)

    yield "as above", plant
    yield "environments 100", but(environments=100)
    yield "environments 25", but(environments=25)
    yield "environments 10", but(environments=10)
    yield "Elasticsearch 32 cores", but(engine_cores=32)
    yield "Elasticsearch 8 cores", but(engine_cores=8)
    yield "generators 14", but(generators=14)
    yield "generators 3", but(generators=3)
    faster = Service(base=plant.learn.base, each=plant.learn.each / 2)
    yield "a learner twice as fast", but(learn=faster)
    yield "…, generators 14", but(learn=faster, generators=14)
    yield "…, Elasticsearch 32 cores", but(learn=faster, generators=14, engine_cores=32)
    yield "batch of 64 groups", but(groups=64)
    yield "batch of 1,024 groups", but(groups=1024)
    yield "staleness 0", but(staleness_max=0)
    yield "staleness 1", but(staleness_max=1)
    yield "staleness 4", but(staleness_max=4)
    yield "partitions 10", but(partitions=10)


def show_cost(measured: Measured) -> None:
    """Print what a million rewards cost, in processor hours by process and by part."""
    rewards = measured.clock.groups * measured.clock.candidates
    print(f"processor seconds for a million rewards (candidates; {measured.clock.candidates} to a group)")
    for name, milliseconds in measured.processor_ms_per_update.items():
        print(f"{name:>28} {milliseconds / 1000 / rewards * MILLION:10,.0f}")
    whole = sum(measured.processor_ms_per_update.values())
    print(f"{'all':>28} {whole / 1000 / rewards * MILLION:10,.0f}")
    for name, milliseconds in measured.parts_ms_per_update.items():
        print(f"{'of that ' + name:>28} {milliseconds / 1000 / rewards * MILLION:10,.0f}")


def show_comparison(times: Calibration, run: Calibration, staleness_max: int) -> None:
    """Print a run's pace beside that of its simulation by these times."""
    plant = this_machine(times, staleness_max=staleness_max)
    found = [simulate(plant, updates=run.updates, seed=seed) for seed in SEEDS]
    paces = [each.groups_per_second for each in found]
    mean = sum(paces) / len(paces)
    behind = sum(each.staleness_mean for each in found) / len(found)
    print(f"\nstaleness_max {staleness_max}: {run.updates} updates of {run.groups} groups")
    print(f"{'':>28} {'groups/s':>10} {'versions behind':>16}")
    print(f"{'measured':>28} {run.groups_per_second:10.2f} {run.staleness_mean:16.2f}")
    print(f"{'simulated':>28} {mean:10.2f} {behind:16.2f}   ({min(paces):.2f} to {max(paces):.2f})")
    print(f"{'difference':>28} {mean / run.groups_per_second - 1:10.1%}")


def show_cluster(measured: Measured) -> None:
    """Print the cluster's pace, and how it and its bottleneck change with each resource."""
    print(f"\n{'':>28} {'groups/s':>9}  {'generator':>9} {'environ.':>9} {'engine':>7} {'learner':>8}  busiest")
    for name, plant in changes(cluster(measured)):
        found = simulate(plant, updates=30)
        print(f"{name:>28} {found.groups_per_second:9.1f}  {_busy(found)}  {found.bottleneck}")
    pace = simulate(cluster(measured), updates=30).groups_per_second
    print(f"\nat {pace:.0f} groups/s, in cores:", end="")
    for role in ("sink", "kafka"):
        print(f" {role} {measured.processor(role) * pace:.2f}", end="")
    print()


def _busy(found: Outcome) -> str:
    widths = {"generator": 9, "environment": 9, "engine": 7, "learner": 8}
    return " ".join(f"{found.busy.get(stage, 0):{width}.0%}" for stage, width in widths.items())


if __name__ == "__main__":
    main()
