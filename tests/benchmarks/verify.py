"""How long `verify` takes and what it holds in memory, for a log and for one ten times as large.

The log has requests, generations and rewards of small groups, and an update for every sixteen of them, tied together as
a learner ties them. Each proof runs in a process of its own, whose peak of resident memory is read in the end; one that
proves an empty log shows what the imports take. Memory must not grow with the log: DuckDB has a limit and a folder to
spill to, and Python holds a few hundred bytes an update.

default: the newest records. rebuild: all of them; it keeps what it has read. grown: the default, after the rebuild,
when the log has grown by a twentieth; it reads what is new, and so proves all. report: `searchloop report`.

Run: python tests/benchmarks/verify.py [--records 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from storage.ledger import LEDGER
from storage.log import open_log
from storage.reports.report import read_report
from storage.sink import Sink
from storage.verification.chain import Head
from storage.verification.verify import Circumstances, verify_log
from streams.codec import content_sha256, encode_event
from streams.events import Completion, Generation, Outcome, Position, Request, Reward, Sampling, Update
from streams.ids import group_id
from streams.records import Received
from streams.topics import topic_name
from tests.stored_events import RUN, policy, record, version

BATCH = 16
MODES = ("default", "rebuild", "grown", "report")
GOAL_MIB = 700  # DuckDB's limit of 512 MiB, and what Python and Arrow hold at once.


def group(number: int) -> tuple[Request, Generation, Reward]:
    """Return one small group: a request, two candidates, and their rewards."""
    source = Position(topic=topic_name(RUN, "requests"), partition=0, offset=number)
    request = Request(
        request_id=f"request-{number}", run=RUN, query_id=f"q{number % 97}", query="usb c cable", index="i-1"
    )
    texts = (f'["over ear {number % 99}"]', f'["headset {number % 89}"]')
    generation = Generation(
        group_id=group_id(RUN, source),
        request=request,
        source=source,
        policy=policy(number // BATCH),
        tokenizer_sha256="e" * 64,
        prompt_sha256="d" * 64,
        sampling=Sampling(candidates=2, temperature=0.9, tokens_max=32),
        prompt_token_ids=(1, 2, 3, 4),
        completions=tuple(
            Completion(text=text, token_ids=(5, 6, 7), logprobs=(-0.5, -1.5, -0.1), finish="stop") for text in texts
        ),
    )
    reward = Reward(
        group_id=generation.group_id,
        generation=generation,
        source=Position(topic=topic_name(RUN, "generations"), partition=0, offset=number),
        content_sha256=content_sha256(encode_event(generation)),
        outcomes=tuple(Outcome(status="scored", valid=True, reward=value) for value in (0.25, number % 7 + 1.0)),
        index="i-1",
        relevance_model="gbdt-1",
        reward_sha256="b" * 64,
    )
    return request, generation, reward


def batches(updates: int) -> Iterator[list[Received]]:
    """Yield the records of each update: those of its groups, then its own and its version's."""
    parent = ""
    for step in range(1, updates + 1):
        numbers = range((step - 1) * BATCH, step * BATCH)
        events = [group(number) for number in numbers]
        update = Update(
            run=RUN,
            policy=policy(step),
            parent=policy(step - 1),
            trained=tuple(reward.group_id for _, _, reward in events),
            positions={0: step * BATCH},
            requests_consumed={0: step * BATCH},
            rejected={},
            disputed={},
            parent_update_sha256=parent,
            parent_manifest_sha256=f"{step - 1:064x}",
        )
        parent = content_sha256(encode_event(update))
        announced = msgspec.structs.replace(version(step, of=update), manifest_sha256=f"{step:064x}")
        yield [
            *(record(event, number) for number, events in zip(numbers, events, strict=True) for event in events),
            record(update, step - 1),
            record(announced, step),
        ]


def write_log(folder: Path, updates: int, *, after: int = 0) -> None:
    """Write the updates of a log into a folder, from the one `after` so many on, each with its groups."""
    with Sink(folder / LEDGER) as sink:
        if not after:
            sink.submit([record(msgspec.structs.replace(version(0), manifest_sha256=f"{0:064x}"), 0)])
        for batch in islice(batches(updates), after, None):
            sink.submit(batch)
        sink.flush()


def prove(folder: Path, updates: int, *, rebuild: bool) -> None:
    """Prove the log in this process, and print what it took as JSON."""
    head = Head(policy=policy(updates), update=None, positions={0: updates * BATCH}, staleness_max=0)
    began = time.monotonic()
    with open_log(folder) as log:
        account = verify_log(log, run=RUN, topics=None, known=Circumstances(head=head), rebuild=rebuild, memory=folder)
    assert account.sound, account.findings[:3]
    tell(began)


def tell(began: float) -> None:
    """Print what this process has taken as JSON. The peak that `getrusage` knows may be that of the parent."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    told = {"seconds": round(time.monotonic() - began, 1), "processor": round(time.process_time(), 1)}
    print(json.dumps(told | {"peak_mib": int(status["VmHWM"].split()[0]) // 1024}))


def measured(folder: Path, updates: int, mode: str) -> dict[str, float]:
    """Prove or report the log in a process of its own."""
    command = [sys.executable, __file__, "--prove", str(folder), "--updates", str(updates), "--mode", mode]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure three sizes in both modes, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, help="records of the larger log")
    parser.add_argument("--prove", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--updates", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prove is not None and arguments.mode == "report":
        began = time.monotonic()
        read_report(arguments.prove)
        tell(began)
        return
    if arguments.prove is not None:
        prove(arguments.prove, arguments.updates, rebuild=arguments.mode == "rebuild")
        return
    rows = []
    print(f"{'records':>10} {'mode':>8} {'seconds':>8} {'processor s':>12} {'peak MiB':>9}")
    for records in (50, arguments.records // 10, arguments.records):
        with tempfile.TemporaryDirectory(prefix="verify-bench-") as name:
            updates = max(records // (3 * BATCH + 2), 1)
            write_log(Path(name), updates)
            for mode in MODES:
                if mode == "grown":
                    updates, before = updates + max(updates // 20, 1), updates
                    write_log(Path(name), updates, after=before)
                row = {"records": records, "mode": mode} | measured(Path(name), updates, mode)
                rows.append(row)
                print(
                    f"{records:>10,} {mode:>8} {row['seconds']:>8} {row['processor']:>12} {row['peak_mib']:>9}",
                    flush=True,
                )
    result = {"benchmark": "verify", "rows": rows, "goal_mib": GOAL_MIB, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
