"""The ways to keep up with a world that drifts, all from one log of what people did.

| arm | words from | learns |
|---|---|---|
| raw | nothing | never |
| look-up each night | words that earned clicks for similar queries in the log's last days | each night |
| look-up without pause | the same | some times a day |
| frozen | the policy of the first day, with the first day's look-up in its prompt | never |
| frozen, look-up without pause | that policy, with the newest look-up in its prompt | its prompt alone |
| restarted each night | an untaught policy that learns the log's best candidates, with its look-up | each night |
| without pause | the policy that wrote the log, with the newest look-up in its prompt | some times a day |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from infra.app.app import App
from infra.app.home import RunFolder
from infra.recipes.decoding import decode_requests
from infra.recipes.first_policy import first_policy
from infra.runs.loop import run_loop
from learner.checkpoints import load_current
from learner.learning import write_first_checkpoint
from learner.policy import Policy, load_policy
from learner.prompts import prompt_text, tokenize_request
from learner.tokenizer import render_pointers
from learner.versions import LoadedVersion
from learner.warmup import warm_up
from search_env.catalogue.corpora import Query
from search_env.engine.searching import ExpandedQuery
from search_env.environments import Environment
from search_env.leser.expansions import ParsedExpansions, choices_of, parse_expansions
from search_env.leser.neighbours import Neighbours
from streams.events import Request, Reward
from streams.pointers import is_selection, read_pointers
from tests.drift.people import Tried, drawn_clicks, search
from tests.drift.shop import Shop

SUBSETS = 8  # Random lists of words that people see for a query on the day before the first.
SUBSET_MAX = 4
FIRST_WORDS, FIRST_SHARE = 14, 0.5  # The untaught policy says each of so many first words with this probability.
Report = Callable[[str, int, int], None]


def silent(what: str, done: int, of: int) -> None:
    """Report nothing."""


def try_words(shop: Shop, queries: Sequence[Query], *, people: int, seed: int) -> list[Tried]:
    """Show lists with random words of the raw results to people, before any policy exists."""
    random = np.random.default_rng(seed)
    shown: list[tuple[Query, tuple[str, ...]]] = []
    distinct = list({query.id: query for query in queries}.values())
    for query, request in zip(distinct, shop.requests("first", distinct, None), strict=True):
        choices = list(choices_of(request.context) or ())
        shown.append((query, ()))
        for _ in range(SUBSETS if choices else 0):
            size = int(random.integers(1, min(SUBSET_MAX, len(choices)) + 1))
            shown.append((query, tuple(random.choice(choices, size=size, replace=False).tolist())))
    rankings = search(shop.searcher, [ExpandedQuery(query.text, words) for query, words in shown])
    tried, raw = [], 0.0
    for query, words in shown:
        grades = shop.day.grades[query.id]
        clicks = drawn_clicks(rankings[ExpandedQuery(query.text, words)].ids, grades, people, random)
        if not words:
            raw = clicks
        else:
            tried.append(Tried(query.id, query.text, words, clicks - raw))
    return tried


def untaught(
    app: App, folder: RunFolder, shop: Shop, memory: Neighbours, seed: int, *, share: float = FIRST_SHARE
) -> None:
    """Make the first policy: it says some of the first words of its prompt, as the look-up would, and knows no word.

    It is warmed up on prompts of the day before the first. No click chooses its answers. share: the probability of each
    word.
    """
    settings = app.settings
    texts = (
        f"{each.title} {each.text} {' '.join(map(str, each.metadata['attributes'].values()))}"
        for each in shop.day.documents
    )
    policy: Policy = first_policy(
        settings.policy,
        texts,
        pointers=settings.prompts.pointers,
        policies=app.home.policies,
        run_dir=folder,
        seed=seed,
    )
    random = np.random.default_rng(seed)
    queries = [query for query in shop.day.queries if query.id in shop.day.grades]
    pairs = []
    for request in shop.requests("first", queries, memory):
        count = min(len(choices_of(request.context) or ()), FIRST_WORDS)
        said = [number for number in range(1, count + 1) if random.random() < share]
        prompt = prompt_text(policy.tokenizer, request.query, request.context, settings.prompts)
        pairs.append((prompt, render_pointers(said)))
    held = max(len(pairs) // 20, 1)
    policy, _ = warm_up(
        policy, pairs[held:], pairs[:held], settings.warmup, folder.warmup / "taught", is_valid=is_selection
    )
    write_first_checkpoint(folder.checkpoints, policy)


def learn_on(app: App, folder: RunFolder, requests: Sequence[Request], environment: Environment, seed: int) -> None:
    """Go on with the policy in this folder. requests: all of its life; the last ones are new."""
    settings = app.settings
    for _ in run_loop(
        requests,
        run=folder.name,
        run_dir=folder,
        environment=environment,
        generation=settings.generation,
        encode_prompt=partial(tokenize_request, settings=settings.prompts),
        batch=settings.batch,
        learner=settings.learner,
        seed=seed,
    ):
        pass


def restart(app: App, beginning: RunFolder, into: RunFolder, log: Sequence[Sequence[Reward]]) -> None:
    """Teach the beginning anew: for each group of the log, the candidate that people clicked most, if it beat raw.

    GRPO on a log that other policies wrote was tried first. It unlearned to answer: on the third day it said nothing.
    """
    settings = app.settings
    folder, _ = load_current(beginning.checkpoints)
    policy = load_policy(folder)
    pairs = []
    for reward in [reward for batch in log for reward in batch]:
        best = max(range(len(reward.outcomes)), key=lambda place: reward.outcomes[place].reward or -1.0)
        if (reward.outcomes[best].reward or 0.0) > 0:
            request = reward.generation.request
            prompt = prompt_text(policy.tokenizer, request.query, request.context, settings.prompts)
            said = read_pointers(reward.generation.completions[best].text) or []
            pairs.append((prompt, render_pointers(said)))
    held = max(len(pairs) // 20, 1)
    policy, _ = warm_up(
        policy, pairs[held:], pairs[:held], settings.warmup, into.warmup / "night", is_valid=is_selection
    )
    shutil.rmtree(into.checkpoints, ignore_errors=True)
    write_first_checkpoint(into.checkpoints, policy)


def copy_checkpoints(beginning: RunFolder, into: RunFolder) -> None:
    """Copy the checkpoints of a run to another one, in place of its own."""
    shutil.rmtree(into.checkpoints, ignore_errors=True)
    Path(into).mkdir(parents=True, exist_ok=True)
    shutil.copytree(beginning.checkpoints, into.checkpoints, symlinks=True)


def written(app: App, folder: RunFolder, requests: Sequence[Request], seed: int) -> list[tuple[str, ...]]:
    """Return the words that the newest policy in this folder serves for each request."""
    at, manifest = load_current(folder.checkpoints)
    groups = decode_requests(
        requests,
        LoadedVersion(at, manifest.policy),
        encode=partial(tokenize_request, settings=app.settings.prompts),
        sampling=app.settings.generation.greedy(),
        seed=seed,
        name="serving",
        report=silent,
    )
    found = []
    for group in groups:
        text = parse_expansions(group.completions[0].text, choices=choices_of(group.request.context))
        found.append(text.expansions if isinstance(text, ParsedExpansions) else ())
    return found
