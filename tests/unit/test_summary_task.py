"""The summary task from a catalogue to measures, through the loop in one process: no broker, no engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings, TrainSettings
from infra.commands.measure import premise
from infra.experiments.measuring import measure_rankings, rank_run
from infra.recipes.recipe import NewRun, load_recipe
from infra.recipes.relsum import labelling
from infra.recipes.relsum.baselines import ARMS
from infra.recipes.relsum.labelling import PAIRS_FILE, TITLE_RIVALS, label_titles, labelled_products, read_pairs
from infra.recipes.relsum.premise import check_premise
from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.writing import policy_summaries
from infra.recipes.summarizing import read_summaries, summaries_path
from infra.runs.loop import run_loop
from infra.runs.training_runs import copy_warmed_up
from learner.batches import BatchSettings
from learner.checkpoints import load_current
from learner.generation import GenerationSettings
from learner.learning import LearnerSettings
from learner.objectives import ObjectiveSettings
from learner.policy_settings import PolicySettings, TinySettings
from search_env.catalogue.demand import DemandSettings
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.engine.index import IndexVersion, SavedDocuments
from search_env.models.crossencoder import CrossEncoderSettings
from search_env.queries.judged_lists import ListSettings
from search_env.relsum.environment import RelsumEnvironmentSettings
from search_env.relsum.reward import RelsumSettings
from search_env.summaries.reading import SummarySettings
from storage.evaluation.tables import EvaluationSettings
from streams.events import Update
from streams.requests import RequestSequence
from streams.topics import version_name

TOKENS = 5
SETTINGS = Settings(
    train=TrainSettings(recipe="relsum", warm_up=False),
    demand=DemandSettings(key_documents_min=5),
    lists=ListSettings(values_min=1, train=40, dev=20, test=15, candidates=6),
    cross_encoder=CrossEncoderSettings(layers=1, tokens_max=24, described_tokens_max=32, lessons=96, pairs_max=96),
    relsum=RelsumEnvironmentSettings(
        reward=RelsumSettings(kind="list_likelihood", queries_max=2),
        summary=SummarySettings(tokens_max=TOKENS),
        filter_delta=0.0,
    ),
    policy=PolicySettings(tiny=TinySettings(vocabulary_size=600, hidden_size=32, layers=1, feedforward_size=64)),
    generation=GenerationSettings(candidates=4, tokens_max=4),
    batch=BatchSettings(groups=4, staleness_max=0),
    learner=LearnerSettings(objective=ObjectiveSettings(advantage="mean_std")),
)


class Learned(NamedTuple):
    """A run of two updates."""

    app: App
    run: RunSettings
    updates: list[Update]


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    home = Home(tmp_path_factory.mktemp("home"))
    folder = home.index("small")
    folder.mkdir(parents=True)
    saved = SavedDocuments(folder)
    count = sum(1 for _ in saved.keep(demo_catalogue(DemoSettings(products=150))))
    saved.accept(IndexVersion(name="small-1", alias="small", documents=count, sha256=saved.sha256.hexdigest()))
    app = App(home, settings=SETTINGS)
    task = load_recipe("relsum")
    prepared = task.prepare(app, NewRun(run="s", index="small"), quiet)
    kept = RunSettings(
        run="s", recipe="relsum", index="small", index_version="small-1", seed=0, updates=2, settings=SETTINGS
    )
    write_run_settings(home.run("s"), kept)
    sequence = RequestSequence(prepared.asked, run="s", seed=0)
    with task.open_environment(app, kept, quiet) as environment:
        updates = list(
            run_loop(
                [sequence[number] for number in range(8)],
                run="s",
                run_dir=home.run("s"),
                environment=environment,
                generation=SETTINGS.generation,
                encode_prompt=task.encoder(SETTINGS),
                batch=SETTINGS.batch,
                learner=SETTINGS.learner,
                seed=0,
            )
        )
    return Learned(app, kept, updates)


def test_the_policy_learns_from_products_alone(learned: Learned) -> None:
    assert len(learned.updates) == 2
    assert any(update.trained for update in learned.updates)
    assert not any(update.failed for update in learned.updates)
    assert all(update.metrics["validity"] == 1 for update in learned.updates)


def test_a_run_that_goes_on_keeps_its_policy_and_its_requests(learned: Learned) -> None:
    before, _ = load_current(learned.app.home.run("s") / "checkpoints")
    again = load_recipe("relsum").prepare(learned.app, NewRun(run="s", index="small"), quiet)
    assert load_current(learned.app.home.run("s") / "checkpoints")[0] == before
    labelled = read_pairs(learned.app.home.run("s") / PAIRS_FILE)
    assert {request.query_id for request in again.asked} <= {each.document_id for each in labelled}
    assert all(request.query == "" for request in again.asked)


def test_summaries_are_stored_with_their_version_and_keep_to_the_budget(learned: Learned) -> None:
    app, run, _ = learned
    world = RankedIndex(app.home.index("small"), app.settings, quiet)
    ids = list(world.documents)
    run_dir = app.home.run("s")
    written = policy_summaries(world, run_dir, run, ids, policy="latest", report=quiet)
    version = version_name(load_current(run_dir.checkpoints)[1].policy)
    stored = read_summaries(summaries_path(run_dir, version))
    assert {each.document_id: each.summary for each in stored} == written
    assert {each.policy for each in stored} == {version}
    assert max(each.tokens for each in stored) <= TOKENS
    assert any(written.values())


def test_policy_versions_and_methods_are_measured_on_the_same_held_out_lists(learned: Learned) -> None:
    app, _, _ = learned
    world = RankedIndex(app.home.index("small"), app.settings, quiet)
    lists = world.lists("dev")
    given = (lists.queries, lists.qrels)
    rankings = {
        name: rank_run(app, learned.run, policy=name, given=given, report=quiet) for name in (*ARMS, "0", "latest")
    }
    found = measure_rankings(
        rankings,
        baseline="key-counts",
        settings=EvaluationSettings(measures=("nDCG@5", "R@90P"), samples=100),
        report=quiet,
    )
    assert [each.name for each in found] == ["tail", "judged queries"]
    for each in found:
        assert len(each.evaluation.runs) == len(each.pooled_recall) == len(ARMS) + 2
        assert each.evaluation.baseline == "key-counts"


def test_descriptions_are_read_only_where_a_filter_asks_how_much_they_move(learned: Learned) -> None:
    assert {query.delta for each in read_pairs(learned.app.home.run("s") / PAIRS_FILE) for query in each.queries} == {1}
    app = learned.app.with_changes("test", {"relsum": {"filter_delta": 0.01}})
    deltas = [
        q.delta
        for each in labelled_products(RankedIndex(app.home.index("small"), app.settings, quiet), set())
        for q in each.queries
    ]
    assert len(set(deltas)) > 1
    assert all(-1 < delta < 1 for delta in deltas)


def test_a_run_that_begins_from_anothers_policy_has_the_labels_that_its_own_settings_ask_for(learned: Learned) -> None:
    home = learned.app.home
    copy_warmed_up(home.run("s"), home.run("filtered"), carried=load_recipe("relsum").carried)
    app = learned.app.with_changes("test", {"relsum": {"filter_delta": 1e-9}})
    load_recipe("relsum").prepare(app, NewRun(run="filtered", index="small"), quiet)
    labelled = read_pairs(home.run("filtered") / PAIRS_FILE)
    assert len({query.delta for each in labelled for query in each.queries}) > 1
    assert load_current(home.run("filtered") / "checkpoints")[1].policy.step == 0


def test_arms_and_seeds_share_the_labelled_products(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    world = RankedIndex(learned.app.home.index("small"), learned.app.settings, quiet)
    kept = read_pairs(learned.app.home.run("s") / PAIRS_FILE)
    monkeypatch.setattr(labelling, "label_products", None)  # Whoever labels anew fails.
    assert labelled_products(world, set()) == kept
    with pytest.raises(TypeError):
        labelled_products(world, {"a query that is held out"})


def test_products_are_paid_by_queries_of_their_titles_where_that_is_asked(learned: Learned) -> None:
    plain = {each.document_id: each.queries for each in read_pairs(learned.app.home.run("s") / PAIRS_FILE)}
    app = learned.app.with_changes("test", {"relsum": {"title_queries": 2}})
    world = RankedIndex(app.home.index("small"), app.settings, quiet)
    found = {each.document_id: each.queries for each in labelled_products(world, set())}
    assert {name: queries[: len(plain[name])] for name, queries in found.items()} == plain
    asked = [(name, query) for name, queries in found.items() for query in queries[len(plain[name]) :]]
    assert len(asked) > len(found) / 2
    for name, query in asked:
        words = set(query.query.split())
        assert words <= set(re.findall(r"\w+", world.values.documents[name].title.lower()))
        assert 1 <= len(query.others) <= TITLE_RIVALS
        assert (query.label, query.delta) == (1, 1.0)
    left_out = {query.query for _, query in asked[:3]}
    again = {query.query for each in label_titles(world, sorted(found), left_out).values() for query in each}
    assert again == {query.query for _, query in asked} - left_out


def test_the_premise_is_checked_on_dev_lists_before_training(learned: Learned) -> None:
    found = check_premise(RankedIndex(learned.app.home.index("small"), learned.app.settings, quiet), queries_max=8)
    assert set(found.arms) == set(ARMS)
    assert found.calibration is not None
    assert all(0 <= row["AUC"] <= 1 for row in found.arms.values())
    assert set(found.agreement) == {"error", "reciprocal_rank", "list_likelihood"}
    assert set(found.milliseconds) == {"title", "summary", "description"}


def test_the_budget_holds_for_every_arm_that_has_one(learned: Learned) -> None:
    world = RankedIndex(learned.app.home.index("small"), learned.app.settings, quiet)
    query = world.lists("test").queries[0]
    for name, says in ARMS.items():
        for document in world.lists("test").qrels[query.id]:
            if name != "description":
                said = says(world, query, document)
                assert len(said.split()) <= TOKENS


def test_a_premise_of_a_recipe_that_has_none_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(premise, ["--recipe", "leser"], obj=App(Home(tmp_path)))
    assert str(result.exception) == "recipe 'leser' has no premise to check. Recipes that offer it: relsum, resume"
