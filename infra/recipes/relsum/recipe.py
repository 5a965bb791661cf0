"""ReLSum (arXiv:2508.08404) as a recipe: the policy sees a product, and writes a summary within a budget.

One request is one training product. The policy sees title and values, and never a query. The warm-up teaches a selector
the preferences of the query log, and GRPO goes on from there. With `[train] warm_up = false` the policy begins
untaught, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from infra.app.app import App
from infra.app.home import IndexFolder, RunFolder
from infra.app.interrupts import interrupts
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.first_policy import first_policy
from infra.recipes.held_out import DEV
from infra.recipes.product_requests import prepared_products, product_encoder
from infra.recipes.recipe import (
    GIVEN,
    TOP,
    CatalogueTexts,
    Judged,
    NewRun,
    Partner,
    PremiseFound,
    PremiseOptions,
    Prepared,
    RankDev,
    Ranked,
)
from infra.recipes.relsum.baselines import ARMS, DESCRIBED, rank_lists, written_by
from infra.recipes.relsum.labelling import PAIRS_FILE, labelled_products, read_pairs, usable, write_pairs
from infra.recipes.relsum.partner import RankerPartner
from infra.recipes.relsum.premise import check_premise
from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.ranker import adapt_ranker
from infra.recipes.relsum.writing import left_out, policy_summaries, policy_writes
from infra.recipes.summarizing import stored_texts
from learner.checkpoints import CURRENT
from learner.generation import Encode
from learner.learning import write_first_checkpoint
from learner.policy import Policy, with_lora
from learner.product_prompts import (
    product_prompt_text,
    render_product,
)
from learner.tokenizer import render_pointers
from learner.warmup import warm_up
from search_env.environments import Environment
from search_env.models.wordpieces import wordpiece_count
from search_env.relsum.environment import RelsumEnvironment
from search_env.relsum.lessons import draw_values
from search_env.summaries.reading import fit_values
from streams.errors import SettingsError
from streams.events import Product
from streams.pointers import is_selection
from streams.stopping import Stop

TAIL = "tail"
ADAPTED = "adapted-"


class Relsum:
    """Summaries of products, rewarded by the scores of a frozen cross-encoder."""

    carried: Sequence[str] = (PAIRS_FILE,)
    methods: Sequence[str] = (*ARMS, *(f"{ADAPTED}{arm}" for arm in ARMS))

    def __init__(self) -> None:
        # An index takes a quarter of a minute to open, and remembers scores. All rankings of one table share it.
        self._indexes: dict[bytes, RankedIndex] = {}

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find lists, cross-encoder, labeled pairs and first policy.

        Training queries come from the index's demand, so `queries_file` is refused. Held-out queries are left out by
        text.
        Raises SettingsError for a user's own queries, and if no pair has |δ| above `relsum.filter_delta`.
        """
        if new.queries_file is not None:
            raise SettingsError("--queries: ReLSum makes its queries from the index's demand; leave it out")
        index, run_dir, settings = app.home.index(new.index), app.home.run(new.run), app.settings
        relsum = RankedIndex(index, settings, report)
        # A run that has begun keeps its pairs. A run that begins from another's policy makes its own: δ is a setting.
        if not run_dir.settings_file.is_file() or not (run_dir / PAIRS_FILE).is_file():
            run_dir.mkdir(parents=True, exist_ok=True)
            write_pairs(run_dir / PAIRS_FILE, labelled_products(relsum, left_out(new.held_out)))
        labelled = {each.document_id: each.queries for each in read_pairs(run_dir / PAIRS_FILE)}
        products = [relsum.shown(document) for document in usable(labelled, settings.relsum)]
        if not products:
            raise SettingsError(
                f"index {new.index!r}: expected a training pair with |δ| above "
                f"{settings.relsum.filter_delta}, found none; lower relsum.filter_delta"
            )
        if not (run_dir.checkpoints / CURRENT).is_file():
            policy = _first_policy(relsum, app.home.policies, run_dir, new.seed)
            if settings.train.warm_up:
                policy = _warm_up(relsum, policy, run_dir, new.seed, report)
            write_first_checkpoint(run_dir.checkpoints, with_lora(policy, settings.policy.lora))
        return prepared_products(index, new.run, products)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of title and values, which never shows a query."""
        return product_encoder(settings.product_prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment that scores this run's groups; nothing has to be closed."""
        relsum = RankedIndex(app.home.index(run.index), app.settings, report)
        labelled = {each.document_id: each.queries for each in read_pairs(app.home.run(run.run) / PAIRS_FILE)}
        yield RelsumEnvironment(
            relsum.cross_encoder,
            usable(labelled, run.settings.relsum),
            run.settings.relsum,
            index=run.index_version,
            count=wordpiece_count,
            text_of=relsum.text,
        )

    @contextmanager
    def open_dev(
        self, app: App, run: RunSettings, *, queries_max: int, given: Judged | None, report: Report
    ) -> Iterator[RankDev]:
        """Give the function that ranks dev lists, and judged products of the given queries, by a version's texts."""
        relsum, run_dir = self._index(app.home.index(run.index), app.settings, report), app.home.run(run.run)
        lists = relsum.lists("dev")
        asked = list(lists.queries[:queries_max])
        sets = [(DEV, asked, {query.id: lists.qrels[query.id] for query in asked})]
        if given is not None:
            sets.append((GIVEN, *relsum.judged(*given)))

        def rank(policy: str) -> list[Ranked]:
            writes = policy_writes(relsum, run_dir, run, policy=policy, report=report)
            return [
                Ranked(name=name, run=rank_lists(relsum, writes, queries, qrels), qrels=qrels)
                for name, queries, qrels in sets
            ]

        yield rank

    def rank(
        self,
        app: App,
        run: RunSettings,
        *,
        policy: str,
        given: Judged | None,
        report: Report,
        temperature: float = 0.0,
        top: int = TOP,
    ) -> list[Ranked]:
        """Rank the held-out lists (tail) and the given queries' judged products (head) with summaries.

        policy: a version, or the name of an arm in `infra.recipes.relsum.baselines`. With "adapted-" before it, the
        cross-encoder is first adapted to its texts about the training lists' products. Lists are ranked whole; `top`
        cuts none.
        """
        relsum = self._index(app.home.index(run.index), app.settings, report)
        tail = relsum.lists("test")
        sets = [(TAIL, list(tail.queries), tail.qrels)]
        if given is not None:
            sets.append((GIVEN, *relsum.judged(*given)))
        writer = policy.removeprefix(ADAPTED)
        if writer in ARMS:
            writes = written_by(relsum, writer)
        else:
            run_dir = app.home.run(run.run)
            writes = policy_writes(relsum, run_dir, run, policy=writer, report=report, temperature=temperature)
        if policy.startswith(ADAPTED):
            left = left_out(given[0] if given else ())
            relsum = relsum.read_with(adapt_ranker(relsum, relsum.cross_encoder, writes, left_out=left))
        described = writer == DESCRIBED
        return [
            Ranked(name=name, run=rank_lists(relsum, writes, queries, qrels, described=described), qrels=qrels)
            for name, queries, qrels in sets
        ]

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write the summary of every product, within the budget of the run's cross-encoder, and return all of them."""
        relsum, run_dir = self._index(app.home.index(run.index), app.settings, report), app.home.run(run.run)
        documents = list(relsum.documents)
        written = policy_summaries(relsum, run_dir, run, documents, policy=policy, report=report)
        return stored_texts(run_dir, written, policy=policy)

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Check calibration, the agreement of each reward with nDCG@5, and the time of scoring."""
        relsum = RankedIndex(app.home.index(index), app.settings, report)
        return check_premise(relsum, queries_max=options.queries_max).found()

    def partner(self) -> Partner:
        """Return the cross-encoder that ranks; its adaptation is the next step that the authors name."""
        return RankerPartner()

    def _index(self, folder: IndexFolder, settings: Settings, report: Report) -> RankedIndex:
        """Return the opened index. Runs share it unless they differ in something that it shows or scores."""
        known = msgspec.json.encode(
            [
                str(folder),
                settings.demand,
                settings.lists,
                settings.cross_encoder,
                settings.relsum.summary,
                settings.product_prompts,
            ]
        )
        if known not in self._indexes:
            self._indexes[known] = RankedIndex(folder, settings, report)
        return self._indexes[known]


def _first_policy(relsum: RankedIndex, policies: Path, run_dir: RunFolder, seed: int) -> Policy:
    settings = relsum.settings
    prompts = settings.product_prompts
    products = map(relsum.shown, relsum.documents)
    texts = (render_product(product, prompts, pointers=False) for product in products)
    return first_policy(settings.policy, texts, pointers=prompts.values, policies=policies, run_dir=run_dir, seed=seed)


def _warm_up(relsum: RankedIndex, policy: Policy, run_dir: RunFolder, seed: int, report: Report) -> Policy:
    """Teach the log's preferences for each product of the training lists, as probabilities and not as one order."""
    settings = relsum.settings
    lists = relsum.lists("train")
    paid = lists.queries[: settings.relsum.training_queries]
    names = sorted({document for query in paid for document in lists.qrels[query.id]})
    random = np.random.default_rng(seed)
    pairs = []
    for place in random.permutation(len(names)).tolist():
        product = relsum.shown(names[place])
        if product.values:
            numbers = draw_values(relsum.values, product, settings.summary_lessons, random)
            answer = _answer(settings, product, numbers, selector=policy.selector is not None)
            pairs.append((product_prompt_text(policy.tokenizer, product, settings.product_prompts), answer))
    held = max(len(pairs) // 20, 1)
    stop = Stop()
    with interrupts(stop):
        policy, _ = warm_up(
            policy,
            pairs[held:],
            pairs[:held],
            msgspec.structs.replace(settings.warmup, seed=seed),
            run_dir.taught,
            report,
            is_valid=is_selection if policy.selector is not None else bool,
            stop=stop,
        )
    return policy


def _answer(settings: Settings, product: Product, numbers: Sequence[int], *, selector: bool) -> str:
    """Return these values as the policy writes them.

    A selector names as many values as it may, and the budget cuts the rest. A selector that was taught to end where the
    budget ends stopped, in greedy decoding, at 11 of 16 tokens: no single value is as likely as the end.
    """
    if selector:
        return render_pointers(numbers[: settings.generation.tokens_max - 1])
    return fit_values(product, numbers, settings.relsum.summary, wordpiece_count).text
