"""Late clicks at full size: impressions over days, with actions up to 24 hours late, doubled and out of order.

    python tests/benchmarks/late_clicks.py --impressions 100000

The events arrive in Kafka in another order than they happened in, and every third one twice. `searchloop listen` joins
and stores them, as a process. Its final outcomes must be those of the ordered log, worked out here without a join, and
each other action must be a dead letter with the reason. `searchloop listen --what-changed` must name exactly the
impressions whose newest provisional outcome differs. A join of the ordered log and one of the arrivals, both in this
process, must agree to the byte, and show the rate of the join alone. Any difference ends the script with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.app.app import App
from infra.app.home import Home
from infra.runs.listening import begin_live
from search_env.feedback.attribution import DAY_MS, HOUR_MS, MINUTE_MS, JoinSettings
from search_env.feedback.joining import Joiner
from services.local import Endpoints, LocalServices
from services.settings import LocalSettings
from storage.log import open_log
from streams.clients import connect_producer
from streams.codec import encode_event
from streams.delivery import Outbox
from streams.events import Position
from streams.topics import BY_EVENT, topic_name
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from tests.commands import command, environment

Event = Impression | UserAction
NOW = 1_760_000_000_000
DAYS = 8
RULES = JoinSettings()


def traffic(count: int, seed: int) -> tuple[list[Impression], list[UserAction]]:
    """Return impressions of 10 documents over 8 days, and actions of every fate."""
    chosen = random.Random(seed)
    impressions, actions = [], []
    for number in range(count):
        at = NOW + number * DAYS * DAY_MS // count
        shown = tuple(Shown(document_id=f"d{chosen.randrange(5_000)}-{rank}", rank=rank) for rank in range(1, 11))
        name = f"i{number}"
        impressions.append(
            Impression(
                impression_id=name,
                query_id=f"q{number % 999}",
                query="red mug",
                client=f"c{chosen.randrange(count // 4)}",
                shown=shown,
                at_ms=at,
            )
        )
        for click in range(chosen.choice([0, 0, 1, 1, 2, 3])):
            after = chosen.choice(
                [-2 * MINUTE_MS, -30_000, MINUTE_MS, HOUR_MS, 23 * HOUR_MS, DAY_MS - 1, DAY_MS, 30 * HOUR_MS]
            )
            document = chosen.choice([*(each.document_id for each in shown), "elsewhere"])
            actions.append(
                UserAction(
                    action_id=f"a{number}-{click}",
                    impression_id=name if chosen.random() < 0.98 else f"nobody{number}",
                    kind="click",
                    document_id=document,
                    at_ms=at + after + chosen.randrange(1_000),
                )
            )
    return impressions, actions


def by_sorting(impressions: Sequence[Impression], actions: Sequence[UserAction]) -> dict[str, list[str]]:
    """Return the actions that count for each impression: two dictionaries and the rules of infra/LIVE.md."""
    found: dict[str, list[str]] = {each.impression_id: [] for each in impressions}
    seen = {each.impression_id: each for each in impressions}
    for action in sorted(actions, key=lambda each: (each.at_ms, each.action_id)):
        impression = seen.get(action.impression_id)
        if impression is None or not -RULES.early_ms <= action.at_ms - impression.at_ms < RULES.window_ms:
            continue
        if action.document_id in {each.document_id for each in impression.shown}:
            found[impression.impression_id].append(action.action_id)
    return found


def arrivals(events: Sequence[Event], seed: int) -> list[Event]:
    """Return the events as they arrive: each up to 24 hours late, and every third one twice."""
    chosen = random.Random(seed)
    late = [(each.at_ms + chosen.randrange(RULES.lateness_ms), number) for number, each in enumerate(events)]
    twice = [
        (events[number].at_ms + chosen.randrange(RULES.lateness_ms), number) for number in range(0, len(events), 3)
    ]
    return [events[number] for _, number in sorted([*late, *twice])]


def joined(events: Sequence[Event]) -> tuple[dict[str, bytes], dict[str, str], float]:
    """Join in this process; return each final outcome's bytes, each left-out action's reason, and the seconds."""
    began, joiner = time.process_time(), Joiner(RULES)
    decided = [
        each
        for offset, event in enumerate(events)
        for each in joiner.add(event, Position(topic="t", partition=0, offset=offset))
    ]
    decided += joiner.finish()
    seconds = time.process_time() - began
    outcomes, reasons = {}, {}
    for each in decided:
        if isinstance(each, ImpressionOutcome):
            outcomes[each.impression.impression_id] = encode_event(each)
        elif hasattr(each, "action"):
            reasons[each.action.action_id] = each.reason
    return outcomes, reasons, seconds


def write(app: App, run: str, events: Sequence[Event]) -> None:
    """Write events as servers do: each on the partition of its impression."""
    producer = connect_producer(app.connections.kafka, client_id="traffic")
    outbox = Outbox(producer, run, stage="traffic", settings=app.settings.delivery)
    for number, event in enumerate(events):
        topic = BY_EVENT[type(event)]
        outbox.forward(
            topic=topic_name(run, topic.kind),
            partition=zlib.crc32(event.impression_id.encode()) % app.connections.kafka.partitions,
            key=event.impression_id.encode(),
            value=encode_event(event),
        )
        if number % 5_000 == 0:
            outbox.flush()
    outbox.flush()
    producer.close()


@contextlib.contextmanager
def services(home: str | None) -> Iterator[tuple[Path, Endpoints]]:
    """Give a home with running services: the one that is named, or a new one."""
    if home is not None:
        yield Path(home), App(Home(Path(home))).local_services().endpoints()
        return
    with tempfile.TemporaryDirectory(prefix="searchloop-late-") as folder:
        Path(folder).chmod(0o755)
        local = LocalServices(Path(folder), LocalSettings(quick_start=True), attached=True)
        try:
            yield Path(folder), local.up()
        finally:
            local.remove()


def require(same: bool, what: str) -> None:
    """End the script if two sides differ."""
    if not same:
        raise SystemExit(f"late_clicks: expected {what}; they differ")


def main() -> None:
    """Write, join, compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=100_000, help="number of impressions (default 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the traffic and of its delays (default 1)")
    parser.add_argument("--home", help="home whose services run (default: a new one, removed at the end)")
    options = parser.parse_args()
    impressions, actions = traffic(options.impressions, options.seed)
    ordered: list[Event] = sorted([*impressions, *actions], key=lambda each: each.at_ms)
    came = arrivals(ordered, options.seed + 1)
    inversions = sum(after.at_ms < before.at_ms for before, after in pairwise(came))
    truth = by_sorting(impressions, actions)
    counted = {name for names in truth.values() for name in names}

    in_order, reasons, _ = joined(ordered)
    late, late_reasons, seconds = joined(came)
    require(in_order == late and reasons == late_reasons, "the joins of both orders to agree to the byte")

    with services(options.home) as (home, endpoints):
        app, run = App(Home(home)).at(endpoints), f"late-{os.getpid()}"
        begin_live(app, run)
        write(app, run, came)
        variables = environment(endpoints) | {"SEARCHLOOP_JOIN__PROVISIONAL_SECONDS": "2"}
        began = time.perf_counter()
        ended = subprocess.run(
            command(home, "listen", "--run", run, "--until-read", "--json"),
            env=variables,
            stdout=subprocess.PIPE,
            check=True,
        )
        wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        counts = json.loads(ended.stdout)
        changed = json.loads(
            subprocess.run(
                command(home, "listen", "--what-changed", "--run", run, "--json"),
                env=variables,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        found: dict[str, list[str]] = {}
        before: dict[str, list[str]] = {}
        with open_log(app.home.run(run)) as log:
            for _, outcome in log.events(ImpressionOutcome):
                side = found if outcome.final else before
                side[outcome.impression.impression_id] = [action.action_id for action in outcome.actions]
            letters = log.rows("SELECT count(*) AS n FROM dead_letters WHERE stage = 'joiner'")[0]["n"]
    require(found == truth, "the stored outcomes to be those of the ordered log")
    lost = {action.action_id for action in actions} - counted
    require(set(reasons) == lost, "each action that does not count to have a reason")
    require(letters == len(lost) == sum(counts["actions_left_out"].values()), "a dead letter for each of them")
    altered = {name for name, names in before.items() if names != truth[name]}
    require(
        {each["impression_id"] for each in changed["changes"]} == altered, "what-changed to name those that changed"
    )
    require(
        changed["altered"] + changed["unaltered"] == len(before), "what-changed to compare each provisional outcome"
    )

    records, by_reason = len(came), dict(sorted(Counter(reasons.values()).items()))
    rows = {
        "impressions, actions, records with copies": f"{len(impressions):,}, {len(actions):,}, {records:,}",
        "records that are older than the one before": f"{inversions:,}",
        "outcomes equal to the ordered log's": f"{len(found):,} of {len(truth):,}",
        "actions that count; dead letters by reason": f"{len(counted):,}; {by_reason}",
        "provisional outcomes; altered since, as what-changed says": f"{len(before):,}; {changed['altered']:,}",
        "listen, from its start to its end": f"{wall:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processor",
        "peak memory of listen (join and sink)": f"{used.ru_maxrss / 1024:,.0f} MiB",
        "the join alone": f"{records / seconds:,.0f} records a processor second",
    }
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n| measured | result |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows.items()))
    print(json.dumps({"benchmark": "late_clicks", **rows}))


if __name__ == "__main__":
    main()
