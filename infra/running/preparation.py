"""What is there before the first request for expansions: queries, contexts, a relevance model, a warmed-up policy.

Everything is a file under the home directory, so what was made once is found again; a run that is continued finds its
own in its folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from infra.context import App
from infra.interrupts import interrupts
from infra.progress import Report
from infra.relevance import open_relevance
from infra.running.first_policy import first_policy
from infra.tasks.task import Prepared
from learner.checkpoints import CURRENT
from learner.learning import write_first_checkpoint
from learner.policy import Policy, with_lora
from learner.prompts import prompt_text, render_answer, with_choices
from learner.tokenizer import is_selection, render_pointers
from learner.warmup import warm_up
from search_env.analysis import analyze, surface_tokens
from search_env.catalogue import Catalogue
from search_env.context import ContextBuilder, with_neighbours
from search_env.corpora import Qrels, Query, load_queries
from search_env.embeddings import Embedder
from search_env.index import IndexVersion, load_documents, load_manifest
from search_env.intents import load_intents
from search_env.lessons import PromptShape, catalogue_lessons, contexts_to_choose_from, copy_lessons, head_lessons
from search_env.neighbours import Neighbours
from search_env.relevance import RelevanceModel
from search_env.retrieval import Retriever
from search_env.teachers import Lesson, Teacher, load_or_teach, write_lessons
from streams.delivery import Stop
from streams.errors import SettingsError
from streams.events import Context, Request

LESSONS_FILE = "lessons.jsonl"
CONTEXTS_FILE = "contexts.jsonl"
LABELS_DEPTH = 200  # Documents of a raw ranking that the relevance model may call relevant.


class Lessons(msgspec.Struct, frozen=True, kw_only=True):
    """What the teacher gives a run; contexts are by query id."""

    look_up: Sequence[Lesson]
    choose: Sequence[Lesson]
    head: Sequence[Lesson]
    contexts: Mapping[str, Context]


class Bench:
    """An opened index: its documents, retriever, relevance model and context builder. Close it after."""

    def __init__(self, app: App, index: str, report: Report) -> None:
        self.app = app
        self.directory = app.home.index(index)
        self.version: IndexVersion = load_manifest(self.directory)
        self.catalogue = Catalogue(load_documents(self.directory))
        self.client = app.engine()
        self.retriever = Retriever(self.client, self.version.name, app.settings.retrieval)
        self.relevance: RelevanceModel = open_relevance(app, index=index, catalogue=self.catalogue, report=report)
        self.builder = ContextBuilder(self.catalogue, self.retriever, self.relevance, app.settings.context)

    def contexts(self, queries: Sequence[str], neighbours: Sequence[tuple[str, ...]] | None = None) -> list[Context]:
        """Return what the policy is shown for each query, with these neighbours' words if any."""
        contexts = self.builder.build_contexts(queries)
        if neighbours is not None:
            contexts = [with_neighbours(context, words) for context, words in zip(contexts, neighbours, strict=True)]
        return [with_choices(context, self.app.settings.prompts) for context in contexts]

    def embedder(self) -> Embedder:
        """Return the sentence encoder that neighbours are found with."""
        return Embedder(self.app.settings.embedding)

    def close(self) -> None:
        """Close the retriever's threads and the client's connections."""
        self.retriever.close()
        self.client.close()


@contextlib.contextmanager
def open_bench(app: App, index: str, report: Report) -> Iterator[Bench]:
    """Give an opened index, and close it after."""
    bench = Bench(app, index, report)
    try:
        yield bench
    finally:
        bench.close()


def prepare(
    app: App,
    *,
    run: str,
    index: str,
    queries_file: Path | None,
    held_out: Sequence[Query],
    seed: int,
    report: Report,
) -> Prepared:
    """Make or find everything that a run needs, and return its queries with their contexts.

    queries_file: training queries of one's own (without judgments); the intents of the index without.
    held_out: queries that must not train anything: whatever has their text is left out, here and among the lessons.
    A run that has a checkpoint keeps the policy, lessons and contexts that it began with.
    """
    run_dir = app.home.run(run)
    with open_bench(app, index, report) as bench:
        qrels: Qrels = {}
        if queries_file is not None:
            queries = load_queries(queries_file)
        else:
            queries, qrels = load_intents(bench.directory / "intents", "train")
        left_out = {_plain(query.text) for query in held_out}
        queries = [query for query in queries if _plain(query.text) not in left_out]
        if not queries:
            raise SettingsError(f"index {index!r} has no training queries; give some: searchloop train --queries FILE")
        head = head_lessons(
            bench.catalogue,
            count=app.settings.lessons.head,
            seed=app.settings.lessons.seed,
            without=[query.text for query in held_out],
        )
        # GRPO sees them too, or it unlearns to leave a query alone that is served well as it is.
        asked = [*queries, *(Query(id=lesson.query_id, text=lesson.query) for lesson in head)]
        if (run_dir / "checkpoints" / CURRENT).is_file():
            contexts = read_contexts(run_dir / CONTEXTS_FILE)
            if set(contexts) != {query.id for query in asked}:
                raise SettingsError(
                    f"run {run!r} began with other training queries ({len(contexts)}, now {len(asked)}). "
                    "Give the same --queries, or another --run NAME"
                )
            return _prepared(run, bench, asked, contexts)
        lessons = _teach(bench, queries, head, qrels, report)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_lessons(run_dir / LESSONS_FILE, lessons.look_up)
        policy = _first_policy(app, bench, run_dir, seed)
        if app.settings.train.warm_up:
            stop = Stop()
            with interrupts(stop):
                policy = _warm_up(bench, policy, lessons, run_dir, seed, report, stop)
        policy = with_lora(policy, app.settings.policy.lora)
        write_contexts(run_dir / CONTEXTS_FILE, lessons.contexts)
        write_first_checkpoint(run_dir / "checkpoints", policy)
        return _prepared(run, bench, asked, lessons.contexts)


def _prepared(run: str, bench: Bench, queries: Sequence[Query], contexts: Mapping[str, Context]) -> Prepared:
    index = bench.version.name
    asked = [
        Request(request_id="", run=run, query_id=q.id, query=q.text, index=index, context=contexts[q.id])
        for q in queries
    ]
    return Prepared(run=run, index=index, asked=asked)


def open_neighbours(bench: Bench, lessons: Sequence[Lesson]) -> Neighbours | None:
    """Return the look-up of what helped similar queries, or None where the prompt shows none or nothing was taught."""
    if not bench.app.settings.prompts.neighbours or not any(lesson.words for lesson in lessons):
        return None
    return Neighbours(lessons, bench.embedder(), bench.app.settings.neighbours)


def write_contexts(path: Path, contexts: Mapping[str, Context]) -> None:
    """Write contexts by query id, one JSON list a line, whole or not at all."""
    aside = path.with_name(path.name + ".writing")
    aside.write_bytes(msgspec.json.Encoder().encode_lines(list(contexts.items())))
    aside.replace(path)


def read_contexts(path: Path) -> dict[str, Context]:
    """Return contexts by query id.

    Raises SettingsError if the file is damaged.
    """
    try:
        return dict(msgspec.json.Decoder(tuple[str, Context]).decode_lines(path.read_bytes()))
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Start a new run with --run NAME") from error


def _plain(text: str) -> str:
    return " ".join(surface_tokens(text))


def _teach(bench: Bench, queries: Sequence[Query], head: Sequence[Lesson], qrels: Qrels, report: Report) -> Lessons:
    """Return the lessons to look up, the lessons to learn, and every query's context with its neighbours' words.

    First round: what would serve each training query best, relevant documents' words included; too many words to
    learn, but good to look up. Second round, for the taught share: what to choose of the words that the prompt shows.
    """
    settings = bench.app.settings
    report("contexts", 0, len(queries))
    contexts = dict(zip((q.id for q in queries), bench.contexts([q.text for q in queries]), strict=True))
    report("contexts", len(queries), len(queries))
    labels = qrels or _labels_by_relevance(bench, queries)
    teacher = Teacher(bench.catalogue, settings.teacher, settings.retrieval)
    folder, index = bench.directory / "teachers", bench.version.name
    look_up = load_or_teach(folder, teacher, queries, contexts, labels, index=index, progress=report)
    neighbours = open_neighbours(bench, look_up)
    if neighbours:
        report("looking neighbours up", 0, 0)
        words = neighbours.words_for_training(queries)
        contexts = {
            query.id: with_choices(with_neighbours(contexts[query.id], said), settings.prompts)
            for query, said in zip(queries, words, strict=True)
        }
    if head:
        phrases = [lesson.query for lesson in head]
        head_contexts = bench.contexts(phrases, neighbours.words(phrases) if neighbours else None)
        contexts |= dict(zip((lesson.query_id for lesson in head), head_contexts, strict=True))
    taught = queries[: max(int(len(queries) * settings.lessons.taught_share), 1)]

    def second_round(what: str, done: int, total: int) -> None:
        report("teaching to choose", done, total)

    choose = load_or_teach(folder, teacher, taught, contexts, labels, index=index, choose=True, progress=second_round)
    return Lessons(look_up=look_up, choose=choose, head=head, contexts=contexts)


def _labels_by_relevance(bench: Bench, queries: Sequence[Query]) -> Qrels:
    """Return, where nobody judged anything, the documents that the relevance model likes best."""
    count = bench.app.settings.lessons.relevant_without_labels
    rankings = bench.retriever.search_many([query.text for query in queries], size=LABELS_DEPTH)
    scores = bench.relevance.score_many([(q.text, r.ids) for q, r in zip(queries, rankings, strict=True)])
    labels: Qrels = {}
    for query, ranking, relevance in zip(queries, rankings, scores, strict=True):
        best = np.argsort(-relevance, kind="stable")[:count]
        labels[query.id] = {ranking.ids[position]: 1 for position in best.tolist()}
    return labels


def _first_policy(app: App, bench: Bench, run_dir: Path, seed: int) -> Policy:
    prompts = app.settings.prompts
    texts = (
        " ".join([document.title, document.text, *map(str, document.metadata.get("attributes", {}).values())])
        for document in bench.catalogue.documents
    )
    policy = first_policy(app, texts, pointers=prompts.pointers, run_dir=run_dir, seed=seed)
    if prompts.select and policy.selector is None:
        raise SettingsError(
            f"prompts.select: expected a policy whose vocabulary has pointers, as 'tiny' is made with, got "
            f"{app.settings.policy.base!r}"
        )
    return policy


def _warm_up(
    bench: Bench,
    policy: Policy,
    lessons: Lessons,
    run_dir: Path,
    seed: int,
    report: Report,
    stop: Stop,
) -> Policy:
    """Teach a policy to read its prompt, then what to choose of it."""
    settings = bench.app.settings

    def pairs(lessons: Sequence[Lesson], shown: Mapping[str, Context]) -> list[tuple[str, str]]:
        found = []
        for lesson in lessons:
            context = with_choices(shown.get(lesson.query_id, Context()), settings.prompts)
            prompt = prompt_text(policy.tokenizer, lesson.query, context, settings.prompts)
            found.append(
                (prompt, _answer(lesson.words, context) if settings.prompts.select else render_answer(lesson.words))
            )
        return found

    reading, shown = _reading_lessons(bench, lessons)
    if reading:
        held = max(len(reading) // 50, 1)
        warmup = msgspec.structs.replace(settings.reading_warmup, seed=seed)
        policy, _ = warm_up(
            policy,
            pairs(reading[held:], shown),
            pairs(reading[:held], shown),
            warmup,
            run_dir / "warmup" / "reading",
            lambda what, done, total: report(f"reading {what}", done, total),
            stop=stop,
        )
    # That no shown word helps is mostly chance: taught, it made the policy silent on a quarter of the held-out intents.
    choose = [lesson for lesson in lessons.choose if lesson.words]
    if not choose and not lessons.head:
        return policy
    held = max(len(choose) // 20, 1)
    warmup = msgspec.structs.replace(settings.warmup, seed=seed)
    policy, _ = warm_up(
        policy,
        pairs([*choose[held:], *lessons.head], lessons.contexts),
        pairs(choose[:held], lessons.contexts),
        warmup,
        run_dir / "warmup" / "taught",
        report,
        is_valid=is_selection if policy.selector is not None else None,
        stop=stop,
    )
    return policy


def _answer(words: Sequence[str], context: Context) -> str:
    """Return a selector's answer that says these words: those of its choices that have the same index terms."""
    numbers = {
        tuple(analyze(word)): number for number, word in reversed(list(enumerate(context.choices or (), start=1)))
    }
    said = (numbers.get(tuple(analyze(word))) for word in words)
    return render_pointers([number for number in dict.fromkeys(said) if number is not None])


def _reading_lessons(bench: Bench, lessons: Lessons) -> tuple[list[Lesson], dict[str, Context]]:
    """Return lessons in which the answer stands in the prompt, in mixed order, and their contexts by query id."""
    prompts, drawn = bench.app.settings.prompts, bench.app.settings.lessons
    shape = PromptShape(terms=prompts.terms, attributes=prompts.attributes, neighbours=prompts.neighbours)
    values = sorted({value for context in lessons.contexts.values() for value in context.attributes})
    copied, contexts = copy_lessons(lessons.look_up, values, count=drawn.copied, shown=shape, seed=drawn.seed)
    catalogue = catalogue_lessons(bench.catalogue, count=drawn.catalogue, seed=drawn.seed) if drawn.catalogue else []
    contexts |= contexts_to_choose_from(catalogue, shown=shape, shown_share=drawn.shown_share, seed=drawn.seed)
    mixed = [*copied, *catalogue]
    order = np.random.default_rng(drawn.seed).permutation(len(mixed))
    return [mixed[position] for position in order.tolist()], contexts
