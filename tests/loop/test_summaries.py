"""ReLSum through Kafka on a small catalogue: learned, proved, made again, summarized, measured."""

from __future__ import annotations

import contextlib
import shutil

import duckdb
import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.app.settings import AlternationSettings, Settings, TrainSettings
from infra.experiments.measuring import measure_rankings, rank_run
from infra.recipes.leser.searching import search_queries
from infra.recipes.publishing import publish_summaries
from infra.recipes.recipe import NewRun
from infra.recipes.relsum.baselines import ARMS
from infra.recipes.relsum.partner import RankerPartner
from infra.recipes.relsum.premise import check_premise
from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.recipe import Relsum
from infra.recipes.relsum.writing import policy_summaries
from infra.recipes.summarizing import read_summaries, summaries_path
from infra.replaying.reproduction import reproduce
from infra.runs.alternation import alternate
from infra.runs.training import TrainingSummary
from infra.runs.training_runs import train_run
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from learner.objectives import ObjectiveSettings
from search_env.catalogue.corpora import rank_by_score
from search_env.catalogue.demand import DemandSettings
from search_env.engine.index import IndexingError, build_index, load_manifest
from search_env.models.crossencoder import CrossEncoderSettings, ReadTexts, current_version, load_cross_encoder
from search_env.queries.judged_lists import ListSettings
from search_env.relsum.environment import RelsumEnvironmentSettings
from search_env.relsum.reward import RelsumSettings
from search_env.summaries.reading import SummarySettings
from storage.evaluation.tables import EvaluationSettings
from storage.ledger import LEDGER
from streams.errors import SettingsError
from streams.topics import version_name
from tests.loop.conftest import SMALL, quiet


def summary_settings() -> Settings:
    """Return settings that learn summaries of the demo catalogue in seconds."""
    return msgspec.structs.replace(
        SMALL,
        train=TrainSettings(recipe="relsum", warm_up=False),
        demand=DemandSettings(key_documents_min=5),
        lists=ListSettings(values_min=1, train=60, dev=30, test=30, candidates=8),
        cross_encoder=CrossEncoderSettings(layers=1, tokens_max=32, described_tokens_max=48, lessons=320),
        relsum=RelsumEnvironmentSettings(
            reward=RelsumSettings(kind="list_likelihood", queries_max=2),
            summary=SummarySettings(tokens_max=4),
            filter_delta=0.0,
        ),
        learner=msgspec.structs.replace(SMALL.learner, objective=ObjectiveSettings(advantage="mean_std")),
    )


@pytest.fixture(scope="module")
def learned(small_world: App) -> tuple[App, TrainingSummary]:
    app = small_world.with_settings(summary_settings())
    return app, train_run(app, NewRun(run="summaries", index="small"), recipe="relsum", updates=3, report=quiet)


def test_summaries_learn_through_the_same_loop_and_its_log_proves_whole(learned: tuple[App, TrainingSummary]) -> None:
    app, summary = learned
    assert summary.updates == 3
    assert summary.groups_trained > 0
    assert summary.valid_first == 1
    assert not verify_run(app, "summaries", rebuild=True, offline=False).findings


def test_a_run_of_summaries_is_made_again_bit_equal(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    assert reproduce(app, "summaries", begin="0", updates_max=None, report=quiet).different is None


def test_every_product_gets_a_stored_summary_within_the_budget(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    run_dir = app.home.run("summaries")
    kept = read_run_settings(run_dir)
    world = RankedIndex(app.home.index("small"), app.settings, quiet)
    ids = list(world.documents)
    written = policy_summaries(world, run_dir, kept, ids, policy="latest", report=quiet)
    _, manifest = load_current(run_dir.checkpoints)
    stored = read_summaries(summaries_path(run_dir, version_name(manifest.policy)))
    assert {each.document_id: each.summary for each in stored} == written
    assert sorted(written) == sorted(ids)
    assert {each.policy for each in stored} == {version_name(manifest.policy)}
    assert max(each.tokens for each in stored) <= 4
    assert any(written.values())
    assert policy_summaries(world, run_dir, kept, ids[:5], policy="latest", report=quiet) == {
        i: written[i] for i in ids[:5]
    }


def test_policy_and_arms_are_measured_on_the_same_lists(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    kept = read_run_settings(app.home.run("summaries"))
    rankings = {name: rank_run(app, kept, policy=name, given=None, report=quiet) for name in (*ARMS, "0", "latest")}
    [tail] = measure_rankings(
        rankings,
        baseline="key-counts",
        settings=EvaluationSettings(measures=("nDCG@5", "R@90P"), samples=200),
        report=quiet,
    )
    assert tail.name == "tail"
    assert len(tail.evaluation.runs) == len(rankings) == len(tail.pooled_recall)
    assert tail.evaluation.queries == 30


def test_summarizer_and_cross_encoder_take_turns(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    settings = msgspec.structs.replace(
        app.settings, alternation=AlternationSettings(turns_max=2, updates=2, patience=5, begin="random")
    )
    given = {"recipe": "relsum", "index": "small", "seed": 0, "name": "ranker", "held_out": [], "report": quiet}
    with pytest.raises(SettingsError, match=r"alternation\.begin: expected 'nothing' with a cross-encoder.*'random'"):
        alternate(app.with_settings(settings), RankerPartner(), **given)  # type: ignore[arg-type]
    turned = app.with_changes("test", {"alternation": {"turns_max": 2, "updates": 2, "patience": 5}})
    state = alternate(turned, RankerPartner(), **given)  # type: ignore[arg-type]

    first, second = state.turns
    versions = app.home.index("small").cross_encoders
    assert (state.first, first.scored_by, second.scored_by) == (current_version(versions), state.first, first.adapted)
    assert len({state.first, first.adapted, second.adapted}) == 3
    for turn, parent in ((first, state.first), (second, first.adapted)):
        read = load_cross_encoder(versions, CrossEncoderSettings(version=turn.adapted))
        assert read.calibration is not None
        assert read.calibration.parent == parent
        assert 0 < turn.before <= 1
        assert 0 < turn.after <= 1
        assert not verify_run(app, turn.run, rebuild=True, offline=False).findings
        with duckdb.connect(str(app.home.run(turn.run) / LEDGER), read_only=True) as ledger:
            paid = ledger.sql("SELECT DISTINCT relevance_model FROM rewards").fetchall()
        assert paid == [(f"cross-encoder-{turn.scored_by}",)]


def test_a_ranker_is_adapted_once_on_what_an_arm_or_a_version_writes(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    kept = read_run_settings(app.home.run("summaries"))

    def ranked(policy: str) -> dict[str, dict[str, float]]:
        return rank_run(app, kept, policy=policy, given=None, report=quiet)[0].run

    versions = app.home.index("small").cross_encoders
    before = {path.name for path in versions.iterdir()}
    adapted = {policy: ranked(policy) for policy in ("adapted-key-counts", "adapted-latest")}
    made = {path.name for path in versions.iterdir()} - before - {"tuned"}
    assert len(made) == 2
    assert all(ranked(policy) == found for policy, found in adapted.items())
    assert {path.name for path in versions.iterdir()} - before - {"tuned"} == made, "it was adapted again"
    assert adapted["adapted-latest"] != ranked("latest")
    # Read with that version by name, the same summaries rank the same.
    by_name = [
        rank_run(app, kept, policy="latest", given=None, changes={"cross_encoder": {"version": name}}, report=quiet)[
            0
        ].run
        for name in made
    ]
    assert adapted["adapted-latest"] in by_name


def test_the_premise_is_checked_before_training(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    premise = check_premise(RankedIndex(app.home.index("small"), app.settings, quiet), queries_max=20)
    assert set(premise.arms) == set(ARMS)
    assert premise.calibration is not None
    assert all(-1 <= value <= 1 for value in premise.agreement.values())
    assert set(premise.milliseconds) == {"title", "summary", "description"}


def test_published_summaries_rerank_what_is_searched(learned: tuple[App, TrainingSummary]) -> None:
    app, _ = learned
    home = app.home
    shutil.copytree(home.index("small"), home.index("shelf"))  # An index of its own: other tests count its versions.
    (home.index("shelf") / "manifest.json").unlink()
    world = RankedIndex(app.home.index("small"), app.settings, quiet)
    queries = list(world.lists("test").queries[:5])
    with contextlib.closing(app.engine()) as client:
        begun = build_index(
            client, "shelf", world.documents.rows, directory=home.index("shelf"), installation=app.installation
        )
    kept = msgspec.structs.replace(read_run_settings(home.run("summaries")), index="shelf", index_version=begun.name)
    asked = {"index": "shelf", "policy": "none", "run": None, "top": 20, "report": quiet}
    before = search_queries(app, queries, **asked)  # type: ignore[arg-type]
    with pytest.raises(IndexingError, match=r"no summaries to rerank with\. Run: searchloop summarize"):
        search_queries(app, queries, **asked, reranked=10)  # type: ignore[arg-type]

    texts = Relsum().write_catalogue(app.with_settings(kept.settings), kept, policy="latest", report=quiet)
    with contextlib.closing(app.engine()) as client:
        version = publish_summaries(
            client, home.index("shelf"), texts, installation=app.installation, runs=home.runs, report=quiet
        )
    ids = list(world.documents)
    written = policy_summaries(world, home.run("summaries"), kept, ids, policy="latest", report=quiet)
    assert (version.name, load_manifest(home.index("shelf"))) == ("shelf-2", version)
    after = search_queries(app, queries, **asked, reranked=10)  # type: ignore[arg-type]
    encoder = world.cross_encoder
    for query in queries:
        first = before[query.id].ids[:10]
        titles = [world.values.documents[document].title for document in first]
        readings = [
            ReadTexts(query.text, title, written[document]) for document, title in zip(first, titles, strict=True)
        ]
        best = rank_by_score(first, encoder.relevance(readings).tolist())
        assert after[query.id].ids == [*best.ids, *before[query.id].ids[10:]]
