"""The teacher's lessons for a run, and the warm-up by which a policy learns them before the first update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from infra.app.home import RunFolder
from infra.app.progress import Report
from infra.recipes.leser.index import LeserIndex, open_neighbours
from learner.policy import Policy
from learner.prompts import prompt_text, render_answer, with_choices
from learner.tokenizer import render_pointers
from learner.warmup import warm_up
from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Qrels, Query
from search_env.leser.context import with_neighbours
from search_env.leser.lessons import PromptShape, catalogue_lessons, contexts_to_choose_from, copy_lessons
from search_env.leser.teachers import Lesson, Teacher, load_or_teach
from streams.events import Context
from streams.pointers import is_selection
from streams.stopping import Stop

LABELS_DEPTH = 200  # Documents of a raw ranking that the relevance model may call relevant.


class Lessons(msgspec.Struct, frozen=True, kw_only=True):
    """The teacher's lessons for a run; contexts are by query id.

    look_up: the best words for each query, to be looked up by similar queries. choose: the words to choose from each
    prompt. head: title phrases that need no words.
    """

    look_up: Sequence[Lesson]
    choose: Sequence[Lesson]
    head: Sequence[Lesson]
    contexts: Mapping[str, Context]


def teach(
    opened: LeserIndex, queries: Sequence[Query], head: Sequence[Lesson], qrels: Qrels, report: Report
) -> Lessons:
    """Return the lessons to look up, the lessons to learn, and every query's context with its neighbors' words.

    The first round finds the best words for each training query, words of relevant documents included. They are too
    many to learn, but good to look up. The second round, for the taught share, chooses among the words that the prompt
    shows.
    """
    settings = opened.settings
    report("contexts", 0, len(queries))
    contexts = dict(zip((q.id for q in queries), opened.contexts([q.text for q in queries]), strict=True))
    report("contexts", len(queries), len(queries))
    by_model = settings.lessons.labels == "relevance" or not qrels
    labels = _labels_by_relevance(opened, queries) if by_model else qrels
    teacher = Teacher(opened.catalogue, settings.teacher, settings.retrieval)
    # Kept lessons are found again by what they were made from; labels of the model are those of its version.
    folder, index = (
        opened.directory.teachers,
        opened.version.name + (f" by {opened.relevance.name}" if by_model else ""),
    )
    look_up = load_or_teach(folder, teacher, queries, contexts, labels, index=index, progress=report)
    neighbours = open_neighbours(opened, look_up)
    if neighbours:
        report("looking neighbours up", 0, 0)
        words = neighbours.words_for_training(queries)
        contexts = {
            query.id: with_choices(with_neighbours(contexts[query.id], said), settings.prompts)
            for query, said in zip(queries, words, strict=True)
        }
    if head:
        phrases = [lesson.query for lesson in head]
        head_contexts = opened.contexts(phrases, neighbours.words(phrases) if neighbours else None)
        contexts |= dict(zip((lesson.query_id for lesson in head), head_contexts, strict=True))
    taught = queries[: max(int(len(queries) * settings.lessons.taught_share), 1)]

    def second_round(what: str, done: int, total: int) -> None:
        report("teaching to choose", done, total)

    choose = load_or_teach(folder, teacher, taught, contexts, labels, index=index, choose=True, progress=second_round)
    return Lessons(look_up=look_up, choose=choose, head=head, contexts=contexts)


def _labels_by_relevance(opened: LeserIndex, queries: Sequence[Query]) -> Qrels:
    """Return labels for queries without judgments: the documents that the relevance model scores highest."""
    count = opened.settings.lessons.relevant_without_labels
    rankings = opened.searcher.search_many([query.text for query in queries], size=LABELS_DEPTH)
    scores = opened.relevance.score_many([(q.text, r.ids) for q, r in zip(queries, rankings, strict=True)])
    labels: Qrels = {}
    for query, ranking, relevance in zip(queries, rankings, scores, strict=True):
        best = np.argsort(-relevance, kind="stable")[:count]
        labels[query.id] = {ranking.ids[position]: 1 for position in best.tolist()}
    return labels


def warm_up_policy(
    opened: LeserIndex,
    policy: Policy,
    lessons: Lessons,
    run_dir: RunFolder,
    seed: int,
    report: Report,
    stop: Stop,
) -> Policy:
    """Teach a policy to read its prompt, and then to choose from it; return the policy."""
    settings = opened.settings

    def pairs(lessons: Sequence[Lesson], shown: Mapping[str, Context]) -> list[tuple[str, str]]:
        found = []
        for lesson in lessons:
            context = with_choices(shown.get(lesson.query_id, Context()), settings.prompts)
            prompt = prompt_text(policy.tokenizer, lesson.query, context, settings.prompts)
            found.append(
                (prompt, _answer(lesson.words, context) if settings.prompts.select else render_answer(lesson.words))
            )
        return found

    reading, shown = _reading_lessons(opened, lessons)
    if reading:
        held = max(len(reading) // 50, 1)
        warmup = msgspec.structs.replace(settings.reading_warmup, seed=seed)
        policy, _ = warm_up(
            policy,
            pairs(reading[held:], shown),
            pairs(reading[:held], shown),
            warmup,
            run_dir.warmup / "reading",
            lambda what, done, total: report(f"reading {what}", done, total),
            stop=stop,
        )
    # A lesson without words is mostly chance. Such lessons made the policy silent on a quarter of the held-out intents.
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
        run_dir.warmup / "taught",
        report,
        is_valid=is_selection if policy.selector is not None else None,
        stop=stop,
    )
    return policy


def _answer(words: Sequence[str], context: Context) -> str:
    """Return a selector's answer that says these words: its choices with the same index terms."""
    numbers = {
        tuple(analyze(word)): number for number, word in reversed(list(enumerate(context.choices or (), start=1)))
    }
    said = (numbers.get(tuple(analyze(word))) for word in words)
    return render_pointers([number for number in dict.fromkeys(said) if number is not None])


def _reading_lessons(opened: LeserIndex, lessons: Lessons) -> tuple[list[Lesson], dict[str, Context]]:
    """Return lessons whose answer stands in the prompt, in mixed order, and their contexts by query id."""
    prompts, drawn = opened.settings.prompts, opened.settings.lessons
    shape = PromptShape(terms=prompts.terms, attributes=prompts.attributes, neighbours=prompts.neighbours)
    values = sorted({value for context in lessons.contexts.values() for value in context.attributes})
    copied, contexts = copy_lessons(lessons.look_up, values, count=drawn.copied, shown=shape, seed=drawn.seed)
    catalogue = catalogue_lessons(opened.catalogue, count=drawn.catalogue, seed=drawn.seed) if drawn.catalogue else []
    contexts |= contexts_to_choose_from(catalogue, shown=shape, shown_share=drawn.shown_share, seed=drawn.seed)
    mixed = [*copied, *catalogue]
    order = np.random.default_rng(drawn.seed).permutation(len(mixed))
    return [mixed[position] for position in order.tolist()], contexts
