"""Scored candidates a second: the search environment against raw `_msearch` requests of the same bodies.

The raw side posts the same bodies, in batches of the same size and with the same filter on the answer, over plain HTTP
connections, as many at once as the environment keeps in flight, and decodes the JSON, no more. The environment side is
`LeserEnvironment.score_many` on fresh groups: parsing, searches, features and trees, rewards, events. Runs alternate,
and so does which side goes first, so that a busy machine and a warm engine serve both alike. Queries are attribute
intents of the generated demo catalogue, or of a corpus given; expansions are words of the catalogue.

Run: python tests/benchmarks/scoring.py [--corpus FILE] [--groups 64] [--candidates 8] [--runs 5]
SEARCHLOOP_TEST_ELASTICSEARCH=URL uses a server that is up already.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np

from search_env.catalogue.corpora import load_corpus
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.forms import ANSWER_FILTER
from search_env.engine.index import build_index
from search_env.engine.searching import RetrievalSettings, Searcher, expanded_bodies
from search_env.leser.environment import LeserEnvironment, LeserEnvironmentSettings
from search_env.models.relevance import GbdtRelevance
from search_env.models.relevance_training import train_gbdt
from search_env.models.training_pairs import GbdtSettings, PairMaker
from search_env.queries.intents import IntentSettings, make_intents
from services.local import LocalServices
from services.settings import LocalSettings
from streams.events import Completion, Generation, PolicyRef, Position, Request, Sampling

GOAL = 0.8
Input = tuple[Generation, Position, str]


def main() -> None:
    """Index, train, time both sides in turn, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    documents = list(load_corpus(options.corpus) if options.corpus else demo_catalogue(DemoSettings()))
    catalogue = Catalogue(documents)
    settings = LeserEnvironmentSettings()
    depth = max(settings.reward.relevance_depth, settings.reward.size_depth)
    intents = make_intents(documents, IntentSettings(queries=4_000))
    grown = train_gbdt(
        PairMaker(catalogue, GbdtSettings()), intents.queries["train"], intents.qrels["train"], corpus_sha256=""
    )
    queries = [query.text for query in intents.queries["train"]]
    runs_groups = [
        groups(queries, catalogue, count=options.groups, candidates=options.candidates, seed=seed)
        for seed in range(options.runs)
    ]
    with elasticsearch() as url:
        client = connect(ElasticsearchSettings(url=url))
        name = f"bench-{uuid.uuid4().hex[:8]}"
        version = build_index(client, name, documents, installation="test")
        plain = RetrievalSettings()
        retriever = Searcher(client, version.name, plain)
        seconds: dict[str, list[float]] = {"raw": [], "environment": []}
        processor: dict[str, list[float]] = {"raw": [], "environment": []}
        try:
            searches = 0
            for run, inputs in enumerate([runs_groups[0], *runs_groups]):
                bodies = [
                    each
                    for generation, _, _ in inputs
                    for expansions in [(), *(msgspec.json.decode(c.text[8:-9]) for c in generation.completions)]
                    for each in expanded_bodies(retriever.form, generation.request.query, expansions, plain, size=depth)
                ]
                # A model that has seen none of these queries, so that its own memory does not help it.
                relevance = GbdtRelevance(catalogue, grown)
                environment = LeserEnvironment(retriever, relevance, settings)

                def raw(bodies: list[dict[str, object]] = bodies) -> None:
                    raw_searches(url, version.name, bodies, retriever.settings)

                def scored(environment: LeserEnvironment = environment, inputs: list[Input] = inputs) -> None:
                    rewards = environment.score_many(inputs)
                    if any(outcome.status != "scored" for reward in rewards for outcome in reward.outcomes):
                        raise SystemExit("scoring: expected every candidate scored; look at the engine's log")

                sides = [("raw", raw), ("environment", scored)]
                for side, act in sides if run % 2 else reversed(sides):
                    began, used = time.perf_counter(), time.process_time()
                    act()
                    if run:  # The first one warms the engine.
                        seconds[side].append(time.perf_counter() - began)
                        processor[side].append(time.process_time() - used)
                searches = len(bodies)
        finally:
            retriever.close()
            client.indices.delete(index=version.name)
            client.close()
    report(options, len(documents), searches, seconds, processor)


def report(
    options: argparse.Namespace,
    documents: int,
    searches: int,
    seconds: dict[str, list[float]],
    processor: dict[str, list[float]],
) -> None:
    """Print what was measured; processor: of this process alone, while the engine works in its own."""
    scored = options.groups * options.candidates
    raw, environment = (statistics.median(seconds[name]) for name in ("raw", "environment"))
    ratio = statistics.median(r / e for r, e in zip(seconds["raw"], seconds["environment"], strict=True))
    result = {
        "benchmark": "scoring",
        "documents": documents,
        "groups": options.groups,
        "candidates": options.candidates,
        "searches": searches,
        "runs": options.runs,
        "raw_candidates_per_second": round(scored / raw, 1),
        "environment_candidates_per_second": round(scored / environment, 1),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "values": {"scoring": [r / e for r, e in zip(seconds["raw"], seconds["environment"], strict=True)]},
        "floors": {"scoring": 1.0},
        "sides": {"scoring": {"raw": raw, "environment": environment}},
        "processor_seconds": {name: round(statistics.median(each), 3) for name, each in processor.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(f"{scored} candidates, {searches} searches, median of {options.runs} alternating runs")
    for name, value in (("raw _msearch", raw), ("environment", environment)):
        own = statistics.median(processor[name.split()[0]])
        print(f"  {name:<14} {value:7.3f} s  {scored / value:8.1f} candidates/s, {own:.3f} s of this process")
    print(f"  ratio {ratio:.2f} (goal ≥ {GOAL})")
    print(json.dumps(result))


def groups(queries: list[str], catalogue: Catalogue, *, count: int, candidates: int, seed: int) -> list[Input]:
    """Return groups of distinct queries, each candidate with one to five words of the catalogue."""
    draw = np.random.default_rng(seed)
    words = [word for word in catalogue.surface_forms if len(word) > 2]
    inputs = []
    for number in draw.permutation(len(queries))[:count].tolist():
        chosen = [draw.integers(len(words), size=draw.integers(1, 6)).tolist() for _ in range(candidates)]
        texts = [f"<answer>{json.dumps([words[word] for word in of])}</answer>" for of in chosen]
        generation = Generation(
            group_id=f"g{number}",
            request=Request(
                request_id=f"r{number}", run="b", query_id=f"q{number}", query=queries[number], index="b-1"
            ),
            source=Position(topic="b", partition=0, offset=number),
            policy=PolicyRef(lineage="b", step=0, sha256=""),
            tokenizer_sha256="",
            prompt_sha256="",
            sampling=Sampling(candidates=candidates, temperature=0.9, tokens_max=16),
            prompt_token_ids=(),
            completions=tuple(Completion(text=text, token_ids=(), logprobs=(), finish="stop") for text in texts),
        )
        inputs.append((generation, Position(topic="b", partition=0, offset=number), ""))
    return inputs


def raw_searches(url: str, index: str, bodies: list[dict[str, object]], settings: RetrievalSettings) -> None:
    """Post the bodies as `_msearch` over plain HTTP and decode the answers."""
    address = urlsplit(url)

    def post(batch: list[dict[str, object]]) -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        body = b"".join(b"{}\n" + msgspec.json.encode(each) + b"\n" for each in batch)
        connection.request(
            "POST", f"/{index}/_msearch?filter_path={ANSWER_FILTER}", body, {"content-type": "application/x-ndjson"}
        )
        answer = msgspec.json.decode(connection.getresponse().read())
        if any(item["status"] != 200 for item in answer["responses"]):
            raise SystemExit("scoring: a raw search failed; look at the engine's log")
        connection.close()

    step = settings.batch_searches
    with ThreadPoolExecutor(settings.in_flight) as pool:
        list(pool.map(post, (bodies[start : start + step] for start in range(0, len(bodies), step))))


@contextmanager
def elasticsearch() -> Iterator[str]:
    """Give the URL of a server: the one that the environment names, or one of our own for the while."""
    if url := os.environ.get("SEARCHLOOP_TEST_ELASTICSEARCH"):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="searchloop-bench-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        services = LocalServices(Path(home), LocalSettings(), attached=True)
        try:
            yield services.up().elasticsearch
        finally:
            services.remove()


if __name__ == "__main__":
    main()
