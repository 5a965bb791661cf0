"""Summaries of every product by ReSuMe's policy: one text for each, or the best of several samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from infra.app.home import IndexFolder, RunFolder
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings
from infra.recipes.resume.bi_encoders import open_encoder
from infra.recipes.resume.texts import document_texts, summarized_values, summary_texts
from infra.recipes.summarizing import Choice, Decoding, summarize
from learner.retriever import RetrieverSettings
from search_env.resume.answered import read_answered
from search_env.resume.environment import ResumeEnvironment, ResumeEnvironmentSettings
from streams.codec import content_sha256, encode_event
from streams.events import Generation


def policy_texts(
    index: IndexFolder,
    run_dir: RunFolder,
    run: RunSettings,
    *,
    policy: str,
    report: Report,
    temperature: float = 0.0,
) -> Mapping[str, str]:
    """Return each document's title with its summary by a version of the run's policy, by document id."""
    summaries = policy_summaries(index, run_dir, run, policy=policy, report=report, temperature=temperature)
    return summary_texts(index, summaries)


def policy_summaries(
    index: IndexFolder,
    run_dir: RunFolder,
    run: RunSettings,
    *,
    policy: str,
    report: Report,
    temperature: float = 0.0,
) -> dict[str, str]:
    """Return the summary of each product that has values to choose from, by a version of the run's policy.

    With `alternation.samples` it is the best of that many samples, unless a temperature asks for a single one.
    """
    values = summarized_values(index, read_answered(run_dir), run.settings.product_prompts)
    documents = [name for name in values.documents if values.product(name).values]
    choice = None if temperature else best_rewarded(index, run_dir, run)
    return summarize(
        run_dir,
        run,
        documents,
        values.product,
        budget=run.settings.resume.summary,
        decoding=Decoding(policy=policy, temperature=temperature, choice=choice),
        report=report,
    )


def best_rewarded(index: IndexFolder, run_dir: RunFolder, run: RunSettings) -> Choice | None:
    """Return the rule that chooses a product's sample with the highest reward; None if `alternation.samples` is 0.

    The reward is the one that the run was begun with, whichever retriever searches now. Ties go by Δ.
    """
    samples = run.settings.alternation.samples
    if not samples:
        return None

    @cache
    def environment() -> ResumeEnvironment:  # Opened at the first group, so not if all summaries are stored.
        paid = read_run_settings(run_dir).settings
        return open_resume_environment(
            index, run_dir, paid.resume, retriever=paid.retriever, index_version=run.index_version
        )

    def place(group: Generation) -> int:
        (reward,) = environment().score_many([(group, group.source, content_sha256(encode_event(group)))])
        worth = [
            (outcome.reward, outcome.components.get("delta", 0.0), -number)
            for number, outcome in enumerate(reward.outcomes)
            if outcome.reward is not None
        ]
        return -max(worth)[2] if worth else 0

    return Choice(f"best-of-{samples}", samples, place)


def open_resume_environment(
    index: IndexFolder,
    run_dir: RunFolder,
    settings: ResumeEnvironmentSettings,
    *,
    retriever: RetrieverSettings,
    index_version: str,
) -> ResumeEnvironment:
    """Return the environment that scores a run's groups. settings, retriever: the run's own tables."""
    answered = read_answered(run_dir)
    return ResumeEnvironment(
        open_encoder(index, settings.retriever, retriever),
        index=index_version,
        documents=document_texts(index),
        queries=answered.queries,
        answered=answered.by_document,
        settings=settings,
    )
