"""ReSuMe through the real broker and engine: two turns, each of them proved, the vectors re-indexed for each."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from infra.app.app import App
from infra.app.home import SETTINGS_FILE
from infra.app.indexing import index_corpus
from infra.app.run_settings import RunSettings, read_run_settings, write_run_settings
from infra.app.settings import AlternationSettings, TrainSettings
from infra.commands.search import search as search_verb
from infra.recipes.decoding import decode_requests
from infra.recipes.held_out import SPLITS
from infra.recipes.resume.bi_encoders import adapt_to_texts, first_retriever
from infra.recipes.resume.partner import RetrieverPartner
from infra.recipes.resume.premise import check_premise
from infra.recipes.resume.recipe import Resume
from infra.recipes.resume.texts import document_texts, summarized_values
from infra.recipes.resume.writing import best_rewarded, open_resume_environment
from infra.recipes.summarizing import read_summaries, summaries_path
from infra.runs.alternation import STATE_FILE, alternate, read_alternation
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from learner.retriever import RetrieverSettings
from learner.retriever_versions import read_retriever_manifest
from learner.versions import LoadedVersion
from search_env.catalogue.corpora import Document, Query, read_run, write_queries
from search_env.engine.index import load_manifest
from search_env.resume.answered import read_answered
from services.local import Endpoints
from streams.codec import content_sha256, encode_event
from streams.errors import SettingsError
from streams.events import Request
from streams.topics import version_name
from tests.commands import command, environment
from tests.loop.conftest import SMALL, quiet


def test_summarizer_and_retriever_take_turns_and_go_on_where_they_stopped(small_world: App) -> None:
    settings = msgspec.structs.replace(
        SMALL,
        train=TrainSettings(recipe="resume"),
        alternation=AlternationSettings(turns_max=1, updates=2, measured_products=8),
        retriever=RetrieverSettings(steps=20, batch_pairs=32),
    )
    app = small_world.with_settings(settings)

    def take(app: App, seed: int = 0) -> object:
        return alternate(
            app, RetrieverPartner(), recipe="resume", index="small", seed=seed, name="alt", held_out=[], report=quiet
        )

    take(app)
    begun = read_alternation(app.home.run("alt") / STATE_FILE)
    assert [turn.turn for turn in begun.turns] == [1]
    assert begun.ended == "turns_max was reached"
    with pytest.raises(SettingsError, match="with seed 0; give the same"):
        take(app, seed=1)

    # As if it had been stopped between two turns, with more of them allowed.
    path = app.home.run("alt") / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ended": ""}))
    more = msgspec.structs.replace(settings.alternation, turns_max=2, patience=5)
    take(app.with_settings(msgspec.structs.replace(settings, alternation=more)))
    state = read_alternation(path)
    assert state.turns[0] == begun.turns[0]
    first, second = state.turns
    assert second.scored_by == first.adapted != second.adapted
    assert (first.policy[-1], second.policy[-1]) == ("2", "4")
    manifest = read_retriever_manifest(app.home.index("small").retrievers / second.adapted)
    assert (manifest.parent, manifest.turn, manifest.steps) == (first.adapted, 2, 20)
    for turn in state.turns:
        account = verify_run(app, turn.run, rebuild=True, offline=False)
        assert not account.findings
    with contextlib.closing(app.engine()) as client:
        behind = client.indices.get_alias(name="alt-vectors").body
    assert [name.startswith(f"alt-vectors-{second.adapted}") for name in behind] == [True]


def test_the_best_of_several_samples_stands_for_each_product_and_each_turn_adapts_the_first_retriever(
    small_world: App,
) -> None:
    settings = msgspec.structs.replace(
        SMALL,
        train=TrainSettings(recipe="resume"),
        alternation=AlternationSettings(turns_max=2, updates=0, patience=5, measured_products=8, samples=3),
        retriever=RetrieverSettings(steps=20, batch_pairs=32),
    )
    settings = msgspec.structs.replace(
        settings, alternation=msgspec.structs.replace(settings.alternation, adapt_from="first")
    )
    app = small_world.with_settings(settings)
    state = alternate(
        app, RetrieverPartner(), recipe="resume", index="small", seed=0, name="several", held_out=[], report=quiet
    )
    manifests = [read_retriever_manifest(app.home.index("small").retrievers / turn.adapted) for turn in state.turns]
    assert [each.parent for each in manifests] == [state.first] * 2
    # Nothing was to be learned, so the policy is the first one; what its samples are worth is another retriever's word.
    assert [turn.policy[-7:] for turn in state.turns] == ["-000000"] * 2
    last = state.turns[-1]
    assert last.scored_by == state.turns[0].adapted

    index, run_dir = app.home.index("small"), app.home.run(last.run)
    kept = read_run_settings(run_dir)
    stored = read_summaries(summaries_path(run_dir, f"{last.policy}-best-of-3"))
    assert stored
    # Searched with another retriever, the corpus is the same: it was chosen by the reward that the run was paid.
    changed = app.with_settings(kept.settings).with_changes("test", {"resume": {"retriever": last.adapted}})
    choice = best_rewarded(index, run_dir, msgspec.structs.replace(kept, settings=changed.settings))
    assert choice is not None
    assert (choice.name, choice.candidates) == ("best-of-3", 3)
    environment = open_resume_environment(
        index, run_dir, kept.settings.resume, retriever=kept.settings.retriever, index_version=kept.index_version
    )
    folder, manifest = load_current(run_dir / "checkpoints")
    answered = read_answered(run_dir)
    values, asked = summarized_values(index, answered, app.settings.product_prompts), set(answered.by_document)
    products = [each for each in map(values.product, values.documents) if len(each.values) > 1][:40]
    requests = [
        Request(
            request_id=each.document_id, run=kept.run, query_id="", query="", index=kept.index_version, product=each
        )
        for each in products
    ]
    groups = decode_requests(
        requests,
        LoadedVersion(folder, manifest.policy),
        encode=Resume().encoder(settings),
        sampling=msgspec.structs.replace(settings.generation.sampling(), candidates=3),
        seed=0,
        name="test",
        report=quiet,
    )
    places = set()
    for product, group in zip(products, groups, strict=True):
        place = choice.place(group)
        if product.document_id in asked:
            (reward,) = environment.score_many([(group, group.source, content_sha256(encode_event(group)))])
            paid = [outcome.reward or 0.0 for outcome in reward.outcomes]
            assert paid[place] == max(paid)
            places.add(place)
        else:
            assert place == 0
    assert len(places) > 1


def test_a_task_ranks_held_out_queries_with_its_summaries(small_world: App) -> None:
    kept = read_run_settings(small_world.home.run("alt-t2"))
    app = small_world.with_settings(kept.settings)
    ranked = Resume().rank(app, kept, policy="latest", given=None, report=quiet)
    assert {each.name for each in ranked} <= set(SPLITS.values())
    assert all(set(each.qrels) <= set(each.run) for each in ranked)


def test_the_command_writes_what_the_next_turn_reads(
    local_services: Endpoints, small_world: App, tmp_path: Path
) -> None:
    run_dir = small_world.home.run("alt-t1")
    _, manifest = load_current(run_dir.checkpoints)
    path = summaries_path(run_dir, version_name(manifest.policy))
    read_by_the_turn = path.read_bytes()
    path.unlink()
    copy = tmp_path / "summaries.jsonl"
    called = command(small_world.home.root, "summarize", "--run", "alt-t1", "--output", str(copy))
    done = subprocess.run(called, env=environment(local_services, SMALL), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == copy.read_bytes() == read_by_the_turn


def test_a_run_that_writes_expansions_has_no_summaries(local_services: Endpoints, small_world: App) -> None:
    write_run_settings(small_world.home.run("first"), plain_run(small_world))
    called = command(small_world.home.root, "summarize", "--run", "first", "--publish")
    done = subprocess.run(called, env=environment(local_services, SMALL), capture_output=True, text=True, check=False)
    (small_world.home.run("first") / SETTINGS_FILE).unlink()
    assert done.returncode == 1
    assert done.stderr == (
        "error: recipe 'leser' writes no texts about products. For query expansions: searchloop expand. Recipes that "
        "offer it: relsum, resume\n"
    )


def plain_run(app: App) -> RunSettings:
    """Return the settings of a LESER run on the small index."""
    version = load_manifest(app.home.index("small")).name
    return RunSettings(
        run="first", recipe="leser", index="small", index_version=version, seed=0, updates=1, settings=SMALL
    )


def test_the_premise_scores_random_selections_and_searches_the_best_any_and_worst_of_them(small_world: App) -> None:
    settings = msgspec.structs.replace(
        SMALL, train=TrainSettings(recipe="resume"), retriever=RetrieverSettings(steps=10, batch_pairs=32)
    )
    app = small_world.with_settings(settings)
    found = check_premise(app.home.index("small"), app.settings, candidates=4, seed=0, report=quiet)
    assert (found.candidates, [each.chosen for each in found.corpora]) == (4, ["best", "random", "worst"])
    best, any_, worst = found.corpora
    assert best.reward > any_.reward > worst.reward
    assert all(0 < each.rr_before <= 1 and 0 < each.rr <= 1 for each in found.corpora)
    manifest = read_retriever_manifest(app.home.index("small").retrievers / found.retriever)
    assert manifest.steps == 10
    assert check_premise(app.home.index("small"), app.settings, candidates=4, seed=0, report=quiet) == found


def test_a_retriever_adapted_on_one_index_searches_another(small_world: App, tmp_path: Path, unique_name: str) -> None:
    documents = [
        Document(id="d0", title="steel kettle", text="boils water"),
        Document(id="d1", title="wool blanket", text="keeps warm"),
    ]
    index_corpus(small_world, name=unique_name, documents=documents, report=quiet)
    queries, out = tmp_path / "queries.jsonl", tmp_path / "elsewhere.run"
    write_queries(queries, [Query(id="q", text="warm blanket")])

    def search(*given: str) -> Result:
        common = ["--by", "vectors", "--index", unique_name, "--queries", str(queries), "--run-file", str(out)]
        return CliRunner().invoke(search_verb, [*common, *given], obj=small_world)

    small, settings = small_world.home.index("small"), RetrieverSettings(steps=5, batch_pairs=32)
    adapted = adapt_to_texts(
        small,
        settings,
        parent=first_retriever(small, settings).name,
        texts=document_texts(small),
        held_out=[],
        turn=1,
        seed=0,
    )
    assert "For another index: --retriever-of" in str(search("--retriever", adapted.name).exception)
    assert f"retriever {adapted.name}" in search("--retriever", adapted.name, "--retriever-of", "small").output
    assert read_run(out)["q"].ids == ["d1", "d0"]
    refused = search("--retriever", adapted.name, "--retriever-of", "small", "--adapt", "5")
    assert f"--adapt adapts retrievers of --index {unique_name}, not of --retriever-of small" in refused.output
