"""The rows of `searchloop bench`: what each measures against which peer, its goal, and the floor below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from streams.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One figure that a script measures.

    script, arguments: of tests/benchmarks. runs_option: the script's option for the number of runs; "" if it has none.
    better: the direction of a gain. goal: None if no figure is asked for.
    floor: what the hardware or the service allows, and how that was found. above: what keeps us away from it.
    """

    name: str
    what: str
    peer: str
    script: str
    arguments: tuple[str, ...] = ()
    runs_option: str = "--runs"
    runs: int = 5
    unit: str = "ratio"
    better: Literal["lower", "higher"] = "lower"
    goal: float | None = None
    floor: str
    above: str

    def command(self, runs: int | None = None) -> tuple[str, ...]:
        """Return the script's path in a clone, with its arguments."""
        counted = (self.runs_option, str(runs or self.runs)) if self.runs_option else ()
        return f"tests/benchmarks/{self.script}", *self.arguments, *counted


ROWS = (
    BenchRow(
        name="learner-step",
        what="seconds of an update, 4 groups of 8, P=256, C=32, a Llama of 4.3 M parameters, fp32, one thread",
        peer="TRL's GRPOTrainer on the same batch; gradients equal to 1e-5",
        script="learner_step.py",
        runs=7,
        goal=0.08,
        floor="the step's own matrix products and attention alone, timed in the same run",
        above="elementwise passes over activations that do not fit the cache",
    ),
    BenchRow(
        name="learner-step-lora",
        what="seconds of an update, one group of 8, P=256, C=32, SmolLM2's shapes with LoRA of rank 16, fp32",
        peer="TRL's GRPOTrainer on the same batch; gradients equal to 1e-5",
        script="learner_step.py",
        arguments=("--model", "smollm2", "--groups", "1"),
        runs=3,
        goal=0.12,
        floor="the step's own matrix products and attention alone, timed in the same run",
        above="elementwise passes over activations",
    ),
    BenchRow(
        name="learner-processes",
        what="seconds of an update of 32 groups by two learner processes, one thread each",
        peer="one process",
        script="learner_processes.py",
        floor=".5: two processes on two free cores",
        above="adding the gradients, the optimizer's step in both, and other processes on the cores",
    ),
    BenchRow(
        name="loss-head-seconds",
        what="seconds of log-probabilities, entropies and gradients at V = 131,072, 1,024 tokens",
        peer="plain torch: log_softmax of all logits",
        script="loss_head.py",
        goal=1.0,
        floor="four matrix products, of which plain torch needs three",
        above="the products: the logits are computed twice to save their memory",
    ),
    BenchRow(
        name="loss-head-memory",
        what="peak memory of the same",
        peer="plain torch",
        script="loss_head.py",
        goal=0.25,
        floor="the gradient of the head, which both sides hold",
        above="chunks of at least 128 tokens, because each reads the whole head",
    ),
    BenchRow(
        name="sampling",
        what="tokens a second of a selector, 32 prompts of 128 tokens, 8 answers each",
        peer="transformers' generate with the same rule",
        script="sampling.py",
        better="higher",
        floor="not known: one forward of the policy for each token",
        above="the forward pass of each token",
    ),
    BenchRow(
        name="sink",
        what="rows a second by the clock, from bytes to durable rows",
        peer="DuckDB, inserting the same rows from ready Arrow tables",
        script="sink.py",
        runs_option="--repeats",
        runs=7,
        better="higher",
        goal=0.8,
        floor="1: what DuckDB stores by itself",
        above="decoding JSON and building Arrow tables, in a process of its own on the second core",
    ),
    BenchRow(
        name="scoring",
        what="scored candidates a second",
        peer="the same bodies as raw `_msearch` requests, with the same filter",
        script="scoring.py",
        better="higher",
        goal=0.95,
        floor="1: what Elasticsearch answers by itself",
        above="features, trees and reward events, while the engine waits",
    ),
    BenchRow(
        name="guarantees",
        what="share of groups a second that the guarantees cost in the smallest loop",
        peer="the same loop without acknowledgements, commits, hashes and fsync",
        script="guarantees.py",
        runs_option="--pairs",
        unit="share",
        goal=0.03,
        floor="0",
        above="acknowledgements and a synced checkpoint for each update, which is short in the smallest loop",
    ),
    BenchRow(
        name="stream-share",
        what="share of Kafka, codec and DuckDB in the processor time of the loop's workers and services",
        peer="the whole of the same run",
        script="cycle.py",
        arguments=("--recipe", "leser", "--updates", "40"),
        runs_option="",
        runs=1,
        unit="share",
        goal=0.03,
        floor="an idle broker and idle consumers: 21 and 8 ms a second (BENCHMARKS, idle)",
        above="polling and the broker's timers, which cost by the second rather than by the group",
    ),
    BenchRow(
        name="announce-to-candidate",
        what="milliseconds from a version's announcement to the beginning of its first group",
        peer="none",
        script="loop.py",
        runs_option="",
        runs=1,
        unit="ms",
        goal=250.0,
        floor="one poll of the topic and one load of the weights",
        above="the chunk that the generator has in hand when the version comes",
    ),
    BenchRow(
        name="policy-lag",
        what="updates between the version that wrote a trained group and the one that learns from it, mean",
        peer="none; `batch.staleness_max` bounds each",
        script="loop.py",
        runs_option="",
        runs=1,
        unit="updates",
        goal=1.2,
        floor="0: a synchronous loop",
        above="groups that are written while the learner learns",
    ),
    BenchRow(
        name="pipeline",
        what="share of the time in which the busiest of the three stages has work",
        peer="the same run's own stages",
        script="loop.py",
        runs_option="",
        runs=1,
        unit="share",
        better="higher",
        goal=0.9,
        floor="twice the busiest stage by the three together, in the same run: a batch passes whole, and staleness 1 "
        "lets two be under way. So .9 needs a stage that takes .45 of a batch's way",
        above="the hops between stages, and stages that share two cores",
    ),
    BenchRow(
        name="pipeline-slow-engine",
        what="the same, with an environment that takes as long as writing and learning",
        peer="the same run's own stages",
        script="asynchronous.py",
        arguments=("--updates", "24"),
        runs=3,
        unit="share",
        better="higher",
        goal=0.9,
        floor="1: the environment never waits",
        above="the hop from the generator to the environment",
    ),
    BenchRow(
        name="async",
        what="seconds of the streaming loop for the same number of updates, with an environment that takes as long as "
        "writing and learning",
        peer="our own loop in one process (`searchloop loop`), one stage after the other",
        script="asynchronous.py",
        arguments=("--updates", "24"),
        runs=3,
        goal=0.6,
        floor=".5: half of a cycle is the environment's, which the other half can overlap",
        above="the environment's idle time between two batches",
    ),
)


def chosen(names: Sequence[str]) -> list[BenchRow]:
    """Return these rows in the order of the table, or all. Raises SettingsError for a name that no row has."""
    known = {row.name for row in ROWS}
    for name in names:
        if name not in known:
            raise SettingsError(f"--row: expected one of {', '.join(row.name for row in ROWS)}, got {name!r}")
    return [row for row in ROWS if not names or row.name in names]
