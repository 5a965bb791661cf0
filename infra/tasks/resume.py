"""ReSuMe's summariser (WWW '26) as a task: a product in, a summary out, paid by what the retriever makes of it.

One run is one turn of the summariser, against one retriever version (`resume.retriever`); `infra.alternation` strings
turns together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from infra.context import App
from infra.progress import Report
from infra.retrievers import dense_search, open_encoder
from infra.run_settings import RunSettings
from infra.settings import Settings
from infra.summarising import summarise_corpus
from infra.tasks.task import Prepared, Ranked
from learner.checkpoints import CURRENT, Manifest, new_lineage
from learner.generation import Encode
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, build_tiny, load_policy, unpack_smollm2, with_lora
from learner.product_prompts import encode_product_request
from search_env.analysis import surface_tokens
from search_env.attributes import key_name
from search_env.controls import Environment
from search_env.corpora import Document, Query
from search_env.index import load_documents, load_manifest
from search_env.intents import load_intents
from search_env.products import asked_names, description_of, lead, most_asked_values, product_of, random_values
from search_env.resume_environment import ResumeEnvironment, embedded_text
from search_env.wordpieces import wordpiece_count
from streams.errors import SettingsError
from streams.events import PolicyRef, Product, Request

HELD_OUT = ("test_pair", "test_value")
QUERIES_FILE = "answered.json"
TOP = 100


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The training queries of a run by id, and the ids of those that each document answers (q⁺)."""

    queries: dict[str, str]
    by_document: dict[str, tuple[str, ...]]


class Resume:
    """Summaries of products, paid by the retriever."""

    carried: Sequence[str] = (QUERIES_FILE,)

    def prepare(
        self,
        app: App,
        *,
        run: str,
        index: str,
        queries_file: Path | None,
        held_out: Sequence[Query],
        seed: int,
        report: Report,
    ) -> Prepared:
        """Ask for every product that answers a training query and has values to choose from; make the first policy.

        Raises SettingsError for queries of one's own (they have no judgments), and if no product can be asked for.
        """
        if queries_file is not None:
            raise SettingsError("--queries: ReSuMe needs judged training queries; leave it out to take the index's own")
        directory = app.home.index(index)
        run_dir = app.home.run(run)
        version = load_manifest(directory)
        documents = list(load_documents(directory))
        if (run_dir / QUERIES_FILE).is_file():
            answered = read_answered(run_dir)
        else:
            answered = answered_queries(directory, held_out)
            run_dir.mkdir(parents=True, exist_ok=True)
            write_answered(run_dir, answered)
        products = [product_of(document) for document in documents]
        asked = [
            Request(
                request_id="", run=run, query_id=each.document_id, query=each.title, index=version.name, product=each
            )
            for each in products
            if each.document_id in answered.by_document and len(each.values) > 1
        ]
        if not asked:
            raise SettingsError(
                f"index {index!r} has no product with two attribute values that answers a training query; "
                "ReSuMe needs a catalogue with attributes"
            )
        if not (run_dir / "checkpoints" / CURRENT).is_file():
            report("making the policy", 0, 0)
            first = PolicyRef(lineage=new_lineage(None), step=0, sha256="")
            policy = with_lora(_first_policy(app, documents, seed), app.settings.policy.lora)
            write_policy_checkpoint(run_dir / "checkpoints", policy, Manifest(policy=first, parent=None), None)
        return Prepared(run=run, index=version.name, asked=asked)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of a product."""
        return partial(encode_product_request, settings=settings.product_prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Give the environment with the retriever version that the run began with."""
        yield open_resume_environment(app, run.index, app.home.run(run.run), index_version=run.index_version)

    def rank(self, app: App, run: RunSettings, *, policy: str, report: Report) -> list[Ranked]:
        """Return the held-out intents, each searched among the policy's summaries with the run's own retriever."""
        summaries = summarise_corpus(app, run, encode=self.encoder(app.settings), policy=policy, report=report)
        encoder = open_encoder(app, run.index, app.settings.resume.retriever)
        texts = summary_texts(app.home.index(run.index), summaries)
        found = []
        for split in HELD_OUT:
            queries, qrels = load_intents(app.home.index(run.index) / "intents", split)
            if not qrels:
                continue
            rankings = dense_search(
                app,
                encoder,
                texts,
                queries,
                index=run.index,
                alias=f"{run.run}-vectors",
                top=TOP,
                settings=app.settings.vectors,
            )
            scores = {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}
            found.append(Ranked(name=split, run=scores, qrels=qrels))
        return found


def open_resume_environment(app: App, index: str, run_dir: Path, *, index_version: str) -> ResumeEnvironment:
    """Return what scores a run's groups. app: with the run's own settings."""
    answered = read_answered(run_dir)
    products = map(product_of, load_documents(app.home.index(index)))
    return ResumeEnvironment(
        open_encoder(app, index, app.settings.resume.retriever),
        index=index_version,
        documents={each.document_id: document_embedded(each) for each in products},
        queries=answered.queries,
        answered=answered.by_document,
        settings=app.settings.resume,
    )


def document_embedded(product: Product) -> str:
    """Return the whole document as the retriever reads it."""
    return embedded_text(product.title, description_of(product))


def summary_texts(directory: Path, summaries: Mapping[str, str]) -> dict[str, str]:
    """Return what stands for each document of an index: its title and its summary, if it has one."""
    return {
        document.id: embedded_text(document.title, summaries.get(document.id, ""))
        for document in load_documents(directory)
    }


def texts_without_policy(app: App, index: str, kind: str, *, seed: int) -> dict[str, str]:
    """Return what stands for each document where no policy writes it, summaries at the budget of `resume.summary`.

    kind: "documents" (whole), "titles", "lead" (the description's first words), "random" (values), "key-prior" (the
    values whose names training queries ask for most). Raises SettingsError for any other.
    """
    directory = app.home.index(index)
    budget = app.settings.resume.summary
    products = [product_of(document) for document in load_documents(directory)]
    if kind == "documents":
        return {each.document_id: document_embedded(each) for each in products}
    if kind == "titles":
        return {each.document_id: each.title for each in products}
    if kind == "lead":
        made = {each.document_id: lead(each, budget, wordpiece_count) for each in products}
    elif kind == "random":
        made = {each.document_id: random_values(each, budget, wordpiece_count, seed=seed) for each in products}
    elif kind == "key-prior":
        queries, _ = load_intents(directory / "intents", "train")
        names = {key: key_name(key) for query in queries for key, _ in query.metadata.get("attributes", ())}
        asked = asked_names(queries, names)
        made = {each.document_id: most_asked_values(each, asked, budget, wordpiece_count) for each in products}
    else:
        raise SettingsError(f"texts: expected documents, titles, lead, random or key-prior, got {kind!r}")
    return {each.document_id: embedded_text(each.title, made[each.document_id]) for each in products}


def answered_queries(directory: Path, held_out: Sequence[Query]) -> Answered:
    """Return an index's training queries with the documents that answer them, held-out texts left out."""
    queries, qrels = load_intents(directory / "intents", "train")
    left_out = {" ".join(surface_tokens(query.text)) for query in held_out}
    kept = {query.id: query.text for query in queries if " ".join(surface_tokens(query.text)) not in left_out}
    by_document: dict[str, list[str]] = {}
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if grade > 0 and query in kept:
                by_document.setdefault(document, []).append(query)
    return Answered(queries=kept, by_document={key: tuple(sorted(ids)) for key, ids in by_document.items()})


def write_answered(run_dir: Path, answered: Answered) -> None:
    """Keep a run's training queries in its folder, whole or not at all."""
    aside = run_dir / f".{QUERIES_FILE}"
    aside.write_bytes(msgspec.json.encode(answered, order="deterministic"))
    aside.rename(run_dir / QUERIES_FILE)


def read_answered(run_dir: Path) -> Answered:
    """Return a run's training queries. Raises SettingsError if the file is missing or damaged."""
    try:
        return msgspec.json.decode((run_dir / QUERIES_FILE).read_bytes(), type=Answered)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{run_dir / QUERIES_FILE}: {error}. Start a new run with --run NAME") from error


def _first_policy(app: App, documents: Sequence[Document], seed: int) -> Policy:
    settings = app.settings.policy
    if settings.base == "tiny":
        texts = (f"{each.title} {description_of(product_of(each))}" for each in documents)
        tiny = msgspec.structs.replace(settings.tiny, seed=seed)
        return build_tiny(texts, tiny, pointers=app.settings.product_prompts.values)
    return unpack_smollm2(app.home.policies / "smollm2") if settings.base == "smollm2" else load_policy(settings.base)
