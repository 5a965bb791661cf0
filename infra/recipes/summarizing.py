"""Summaries of products by one policy version, stored under its name: decoded as served, or chosen among samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from infra.app.home import RunFolder
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.asked_requests import AskedRequests
from infra.recipes.decoding import decode_requests, served
from infra.recipes.product_requests import product_encoder
from infra.recipes.recipe import CatalogueTexts
from learner.versions import LoadedVersion, find_version
from search_env.catalogue.corpora import write_whole
from search_env.models.wordpieces import wordpiece_count
from search_env.summaries.reading import ParsedSummary, SummarySettings, read_summary
from streams.errors import SettingsError
from streams.events import Generation, Product, Request
from streams.topics import version_name


class StoredSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A policy version's summary of a document, as it is indexed.

    summary: "" if the policy wrote nothing readable (`valid` is then False); the title then stands alone.
    tokens, repeats: as in `search_env.summaries.reading.ParsedSummary`.
    """

    document_id: str
    policy: str
    summary: str
    valid: bool = True
    tokens: int = 0
    repeats: float = 0.0


class Choice(NamedTuple):
    """A rule that chooses one of several sampled texts for each product.

    name: of the rule, a part of the stored file's name. candidates: number of samples. place: index of the chosen text
    in its group, from 0.
    """

    name: str
    candidates: int
    place: Callable[[Generation], int]


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """The policy version that writes, and how it decodes.

    policy: "latest" or a version of the run. temperature: above 0, texts are sampled, and none is stored. choice: the
    rule that chooses among texts sampled as in the run's training; do not combine it with a temperature.
    """

    policy: str
    temperature: float = 0.0
    choice: Choice | None = None


def summarize(
    run_dir: RunFolder,
    run: RunSettings,
    documents: Sequence[str],
    product_of: Callable[[str], Product],
    *,
    budget: SummarySettings,
    decoding: Decoding,
    report: Report,
) -> dict[str, str]:
    """Return a policy version's summary of each product, by document id. Missing summaries are written and stored.

    product_of: gives a product as prompts show it; only a few of them are in memory at a time.
    """
    folder, manifest = find_version(run_dir.checkpoints, decoding.policy)
    path, kept = summaries_path(run_dir, version_name(manifest.policy), decoding.choice), not decoding.temperature
    stored = {each.document_id: each for each in read_summaries(path)} if path.is_file() and kept else {}
    missing = [name for name in documents if name not in stored]
    if missing:
        version = LoadedVersion(folder, manifest.policy)
        for each in _write(run, version, missing, product_of, budget, decoding, report):
            stored[each.document_id] = each
        if kept:
            write_whole(path, msgspec.json.Encoder().encode_lines([stored[document] for document in sorted(stored)]))
    return {name: stored[name].summary for name in documents}


def stored_texts(
    run_dir: RunFolder, written: Mapping[str, str], *, policy: str, choice: Choice | None = None
) -> CatalogueTexts:
    """Return the texts that `summarize` has stored, with the version's name and the file."""
    _, manifest = find_version(run_dir.checkpoints, policy)
    name = version_name(manifest.policy)
    return CatalogueTexts(policy=name, by_document=dict(written), path=summaries_path(run_dir, name, choice))


def summaries_path(run_dir: RunFolder, version: str, choice: Choice | None = None) -> Path:
    """Return the file of a policy version's summaries. Summaries chosen among samples have a file of their own."""
    name = f"{version}-{choice.name}" if choice else version
    return run_dir.summaries / f"{name}.jsonl"


def read_summaries(path: Path) -> list[StoredSummary]:
    """Return the summaries in a file. Raises SettingsError if it is missing or damaged."""
    try:
        return msgspec.json.Decoder(StoredSummary).decode_lines(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Delete it; the same command writes it anew") from error


def _write(
    run: RunSettings,
    version: LoadedVersion,
    documents: Sequence[str],
    product_of: Callable[[str], Product],
    budget: SummarySettings,
    decoding: Decoding,
    report: Report,
) -> Iterator[StoredSummary]:
    def request_of(name: str) -> Request:
        return Request(
            request_id=name,
            run=run.run,
            query_id=name,
            query="",
            index=run.index_version,
            split="live",
            product=product_of(name),
        )

    sampling, choice = served(run, temperature=decoding.temperature), decoding.choice
    if choice is not None:
        sampling = msgspec.structs.replace(run.settings.generation.sampling(), candidates=choice.candidates)
    groups = decode_requests(
        AskedRequests((), documents, request_of),
        version,
        encode=product_encoder(run.settings.product_prompts),
        sampling=sampling,
        seed=run.seed,
        name="summarizing",
        report=report,
    )
    for name, group in zip(documents, groups, strict=True):
        place = choice.place(group) if choice is not None else 0
        read = read_summary(group.completions[place].text, product_of(name), budget, wordpiece_count)
        valid = isinstance(read, ParsedSummary)
        yield StoredSummary(
            document_id=name,
            policy=version_name(version.reference),
            summary=read.text if isinstance(read, ParsedSummary) else "",
            valid=valid,
            tokens=read.tokens if isinstance(read, ParsedSummary) else 0,
            repeats=read.repeats if isinstance(read, ParsedSummary) else 0.0,
        )
