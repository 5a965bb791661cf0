"""The summaries of a whole corpus as one policy version writes them, decoded greedily and stored with its name."""

from __future__ import annotations

from pathlib import Path

import msgspec

from infra.context import App
from infra.progress import Report
from infra.run_settings import RunSettings
from learner.generation import Encode, generate_groups
from learner.versions import LoadedVersion, find_version
from search_env.index import load_documents, load_manifest
from search_env.products import product_of
from search_env.summaries import ParsedSummary, read_summary
from search_env.wordpieces import wordpiece_count
from streams.errors import SettingsError
from streams.events import Position, Request
from streams.topics import version_name

CHUNK_GROUPS = 128


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy version wrote about a document, as it is indexed; "" where it wrote nothing that can be read."""

    document_id: str
    policy: str
    summary: str
    valid: bool


def summarise_corpus(app: App, run: RunSettings, *, encode: Encode, policy: str, report: Report) -> dict[str, str]:
    """Return the summary of every document that has values, by id; what a version wrote before is read again.

    policy: "latest" or a version of the run. A text in the wrong format is an empty summary: the title stands alone.
    """
    folder, manifest = find_version(app.home.run(run.run) / "checkpoints", policy)
    name = version_name(manifest.policy)
    path = app.home.run(run.run) / "summaries" / f"{name}.jsonl"
    if path.is_file():
        return {each.document_id: each.summary for each in read_summaries(path)}
    version = LoadedVersion(folder, manifest.policy)
    index = load_manifest(app.home.index(run.index)).name
    products = [each for each in map(product_of, load_documents(app.home.index(run.index))) if each.values]
    requests = [
        (
            Position(topic="summaries", partition=0, offset=number),
            Request(
                request_id=each.document_id,
                run=run.run,
                query_id=each.document_id,
                query=each.title,
                index=index,
                split="live",
                product=each,
            ),
        )
        for number, each in enumerate(products)
    ]
    found: list[Summary] = []
    for start in range(0, len(requests), CHUNK_GROUPS):
        groups = generate_groups(
            requests[start : start + CHUNK_GROUPS],
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            encode_prompt=encode,
            sampling=run.settings.generation.greedy(),
            seed=run.seed,
            made_at_ms=0,
        )
        for group, product in zip(groups, products[start : start + CHUNK_GROUPS], strict=True):
            read = read_summary(group.completions[0].text, product, app.settings.resume.summary, wordpiece_count)
            valid = isinstance(read, ParsedSummary)
            text = read.text if isinstance(read, ParsedSummary) else ""
            found.append(Summary(document_id=product.document_id, policy=name, summary=text, valid=valid))
        report("summarising", len(found), len(products))
    write_summaries(path, found)
    return {each.document_id: each.summary for each in found}


def write_summaries(path: Path, summaries: list[Summary]) -> None:
    """Write summaries, one JSON object a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(msgspec.json.Encoder().encode_lines(summaries))
    aside.rename(path)


def read_summaries(path: Path) -> list[Summary]:
    """Return the summaries in a file. Raises SettingsError if it is missing or damaged."""
    try:
        return msgspec.json.Decoder(Summary).decode_lines(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Delete it; the same command writes it anew") from error
