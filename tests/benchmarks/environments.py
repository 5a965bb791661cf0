"""Twice the environments and partitions: how much faster a run's groups are scored when the engine is slow to answer.

The workers are `run_environment` with LESER's environment, each in a process of its own, on a real Kafka and a real
Elasticsearch. A proxy before the engine lets every `_msearch` answer later by a fixed time, as an engine far away or
one with a long queue does. The workers take their partitions first; then all groups are produced at once, and the
clock runs from there to the last reward. Runs of one worker and of two alternate. A first pair warms the broker and the
engine, and is not counted.

Run: python tests/benchmarks/environments.py [--groups 192] [--delay 0.5] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from kafka import TopicPartition

from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index, kept_catalogue, load_manifest
from search_env.engine.searching import RetrievalSettings, Searcher
from search_env.leser.environment import LeserEnvironment, LeserEnvironmentSettings
from search_env.models.relevance_files import load_gbdt, save_gbdt
from search_env.models.relevance_training import train_gbdt
from search_env.models.training_pairs import GbdtSettings, PairMaker
from search_env.queries.intents import IntentSettings, make_intents
from search_env.workers import run_environment
from services.local import LocalServices
from services.settings import LocalSettings
from streams.clients import connect_admin, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.group_ownership import describe_group
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.ranges import log_bounds
from streams.stopping import Stop
from streams.topics import topic_name
from tests.benchmarks.scoring import groups
from tests.fault_proxy import fault_proxy

GOAL = 1.8
CANDIDATES = 4
DELIVERY = DeliverySettings(records_max=8)


def worker(home: Path, run: str, member: str, kafka: KafkaSettings, engine: str) -> None:
    """Be one environment of a run until a SIGTERM."""
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    catalogue = kept_catalogue(home)
    model = load_gbdt(home / "relevance", catalogue)
    client = connect(ElasticsearchSettings(url=engine))
    searcher = Searcher(client, load_manifest(home).name, RetrievalSettings(remembered=0))
    post = Post(run=run, member=member, kafka=kafka, delivery=DELIVERY, stop=stop)
    run_environment(post, LeserEnvironment(searcher, model, LeserEnvironmentSettings()))
    searcher.close()


def timed(home: Path, kafka: KafkaSettings, engine: str, *, workers: int, count: int, seed: int) -> float:
    """Return the seconds in which so many workers score so many groups, on as many partitions as there are workers."""
    run = f"bench-{uuid.uuid4().hex[:8]}"
    kafka = msgspec.structs.replace(kafka, partitions=workers)
    create_topics(kafka, run)
    place = ["--home", str(home), "--run", run, "--kafka", kafka.bootstrap, "--engine", engine]
    command = [sys.executable, __file__, *place, "--partitions", str(workers), "--worker"]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(workers)]
    try:
        until(lambda: members(kafka, run) == workers, processes)
        time.sleep(3)  # The last rebalance ends: every worker polls its own partition.
        catalogue = kept_catalogue(home)
        queries = msgspec.json.decode((home / "queries.json").read_bytes(), type=list[str])
        producer = connect_producer(kafka, client_id="bench")
        outbox = Outbox(producer, run, stage="generator", settings=DELIVERY)
        made = groups(queries, catalogue, count=count, candidates=CANDIDATES, seed=seed)
        began = time.monotonic()
        for number, (generation, _, _) in enumerate(made):
            request = msgspec.structs.replace(generation.request, run=run)
            outbox.send(msgspec.structs.replace(generation, request=request), partition=number % workers)
        outbox.flush()
        rewards = [TopicPartition(topic_name(run, "rewards"), number) for number in range(workers)]
        until(lambda: sum(end for _, end in log_bounds(kafka, rewards).values()) >= count, processes)
        took = time.monotonic() - began
        producer.close()
        return took
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def members(kafka: KafkaSettings, run: str) -> int:
    """Return how many workers have partitions of the run's generations."""
    admin = connect_admin(kafka)
    try:
        described = describe_group(admin, f"{run}.environment")
        return sum(1 for member in described.get("members") or () if member.get("member_assignment"))
    finally:
        admin.close()


def until(true: object, processes: list[subprocess.Popen[bytes]]) -> None:
    """Return when it is true. Ends the benchmark if a worker ends."""
    while not true():  # type: ignore[operator]
        if any(process.poll() is not None for process in processes):
            raise SystemExit("environments: a worker ended; see above")
        time.sleep(0.05)


def prepare(home: Path, engine: str) -> str:
    """Index the demo's catalogue, train the trees, and return the index version's name."""
    documents = list(demo_catalogue(DemoSettings(products=1_000)))
    intents = make_intents(documents, IntentSettings(queries=1_000))
    asked, qrels = intents.queries["train"], intents.qrels["train"]
    grown = train_gbdt(PairMaker(Catalogue(documents), GbdtSettings()), asked, qrels, corpus_sha256="")
    save_gbdt(home / "relevance", grown)
    (home / "queries.json").write_bytes(msgspec.json.encode([query.text for query in asked]))
    client = connect(ElasticsearchSettings(url=engine))
    try:
        return build_index(client, "bench", documents, installation="bench", directory=home).name
    finally:
        client.close()


def main() -> None:
    """Measure both sides in turn, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=192)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds by which each answer is late")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    for name in ("--run", "--kafka", "--engine"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--partitions", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        kafka = KafkaSettings(bootstrap=options.kafka, partitions=options.partitions)
        worker(options.home, options.run, f"environment-{options.worker}", kafka, options.engine)
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="environments-bench-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        home.chmod(0o755)
        services = LocalServices(home, LocalSettings(), attached=True)
        try:
            running = services.up()
            prepare(home, running.elasticsearch)
            kafka = KafkaSettings(bootstrap=running.kafka)
            with fault_proxy(running.elasticsearch, delay_seconds=options.delay) as proxy:
                proxy.mode = "slow"
                for pair in range(options.pairs + 1):
                    for workers in (1, 2) if pair % 2 else (2, 1):
                        took = timed(home, kafka, proxy.url, workers=workers, count=options.groups, seed=pair)
                        if pair:
                            seconds[workers].append(took)
                        print(f"  {workers} environments: {options.groups / took:.2f} groups/s", flush=True)
        finally:
            services.remove()
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"two environments on two partitions against one on one: {ratio:.2f} times the groups (goal ≥ {GOAL})")
    told = {str(workers): [round(each, 2) for each in took] for workers, took in seconds.items()}
    result = {"benchmark": "environments", "groups": options.groups, "delay": options.delay, "seconds": told}
    result |= {"ratio": round(ratio, 3), "goal": GOAL, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
