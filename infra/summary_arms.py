"""The arms of the summary task: what each says of a product within the same budget, and how lists are ranked with it.

Two arms have no budget and bound the others from above: `description` says everything, and `oracle` writes a summary
for the query, which no catalogue could store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from infra.context import App
from infra.progress import Report
from infra.run_settings import RunSettings
from infra.summary_world import SummaryWorld
from learner.generation import generate_groups
from learner.product_prompts import encode_product_request
from learner.versions import LoadedVersion, find_version
from search_env.corpora import Qrels, Query, write_whole
from search_env.summaries import ParsedSummary, fit_text, read_summary
from search_env.wordpieces import wordpiece_count
from streams.events import Position, Request
from streams.topics import version_name

CHUNK_GROUPS = 64

Says = Callable[[SummaryWorld, Query, str], str]


def _by(method: str) -> Says:
    def says(world: SummaryWorld, query: Query, document: str) -> str:
        return world.summary(document, getattr(world.values, method)(document))

    return says


def _first_tokens(world: SummaryWorld, query: Query, document: str) -> str:
    return _cut(world, world.values.description(document))


def _expected_queries(world: SummaryWorld, query: Query, document: str) -> str:
    return _cut(world, world.values.expected_queries(document))


def _cut(world: SummaryWorld, text: str) -> str:
    return fit_text(text, world.settings.summary_environment.summary, wordpiece_count).text


ARMS: Mapping[str, Says] = {
    "title": lambda world, query, document: "",
    "first-tokens": _first_tokens,
    "random": _by("by_chance"),
    "idf": _by("by_rarity"),
    "log-counts": _by("by_log"),
    "log-counts-per-word": _by("by_log_per_word"),
    "log-rates": _by("by_rate"),
    "doc2query": _expected_queries,
    "oracle": lambda world, query, document: world.summary(
        document, world.values.asked(document, query.metadata.get("keys", ()))
    ),
    "description": lambda world, query, document: world.values.description(document),
}


class StoredSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A product's summary as it is stored beside the title, with the policy version that wrote it."""

    document_id: str
    summary: str
    tokens: int
    repeats: float
    policy: str


def rank_lists(
    world: SummaryWorld, arm: str, summaries: Mapping[str, str] | None, queries: Sequence[Query], qrels: Qrels
) -> dict[str, dict[str, float]]:
    """Return each query's judged products with the cross-encoder's calibrated probability.

    summaries: a policy's, by document id; None takes what the arm of this name says.
    """
    items = [(query, document) for query in queries for document in qrels[query.id]]
    texts = [
        world.text(
            document, summaries.get(document, "") if summaries is not None else ARMS[arm](world, query, document)
        )
        for query, document in items
    ]
    encoder = world.cross_encoder
    pairs = [(query.text, text) for (query, _), text in zip(items, texts, strict=True)]
    scores = encoder.probabilities(encoder.logits(pairs, described=arm == "description", report=world.report))
    found: dict[str, dict[str, float]] = {query.id: {} for query in queries}
    for (query, document), score in zip(items, scores.tolist(), strict=True):
        found[query.id][document] = score
    return found


def summaries_of(
    app: App, world: SummaryWorld, run: RunSettings, documents: Sequence[str], *, policy: str, report: Report
) -> dict[str, str]:
    """Return a policy version's summaries of these documents: those stored already, and the others written now."""
    folder, manifest = find_version(app.home.run(run.run) / "checkpoints", policy)
    path = summaries_path(app, run, version_name(manifest.policy))
    stored = {each.document_id: each for each in read_summaries(path)}
    missing = [document for document in documents if document not in stored]
    if missing:
        for each in write_summaries(world, run, LoadedVersion(folder, manifest.policy), missing, report):
            stored[each.document_id] = each
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = msgspec.json.Encoder().encode_lines([stored[document] for document in sorted(stored)])
        write_whole(path, lines.decode())
    return {document: stored[document].summary for document in documents}


def summaries_path(app: App, run: RunSettings, version: str) -> Path:
    """Return where a policy version's summaries are stored."""
    return app.home.run(run.run) / "summaries" / f"{version}.jsonl"


def read_summaries(path: Path) -> list[StoredSummary]:
    """Return the stored summaries; none where none were stored."""
    return msgspec.json.Decoder(StoredSummary).decode_lines(path.read_bytes()) if path.is_file() else []


def write_summaries(
    world: SummaryWorld, run: RunSettings, version: LoadedVersion, documents: Sequence[str], report: Report
) -> list[StoredSummary]:
    """Return what a loaded policy version writes of these documents, decoded greedily, within the budget."""
    settings, written = run.settings, list[StoredSummary]()
    for start in range(0, len(documents), CHUNK_GROUPS):
        chunk = documents[start : start + CHUNK_GROUPS]
        requests = [
            (
                Position(topic="summarize", partition=0, offset=start + number),
                Request(
                    request_id=document,
                    run=run.run,
                    query_id=document,
                    query="",
                    index=run.index_version,
                    split="live",
                    product=world.shown(document),
                ),
            )
            for number, document in enumerate(chunk)
        ]
        groups = generate_groups(
            requests,
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=lambda tokenizer, request: encode_product_request(
                tokenizer, request, settings.product_prompts
            ),
            sampling=settings.generation.greedy(),
            seed=run.seed,
            made_at_ms=0,
        )
        for document, group in zip(chunk, groups, strict=True):
            read = read_summary(
                group.completions[0].text, world.shown(document), settings.summary_environment.summary, wordpiece_count
            )
            valid = isinstance(read, ParsedSummary)
            written.append(
                StoredSummary(
                    document_id=document,
                    summary=read.text if isinstance(read, ParsedSummary) else "",
                    tokens=read.tokens if isinstance(read, ParsedSummary) else 0,
                    repeats=read.repeats if isinstance(read, ParsedSummary) else 0.0,
                    policy=version_name(version.reference) if valid else "",
                )
            )
        report("summarizing", len(written), len(documents))
    return written
