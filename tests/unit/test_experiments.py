"""Plans of experiments: what they say, what is refused, and what an arm's seeds add up to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.layers import assignments_layer, combine, read_toml
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.experiments import making
from infra.experiments.arms import begin, commands, run_arms
from infra.experiments.making import Job, Made, Way, made_by_turns, run_name
from infra.experiments.page import render_experiment
from infra.experiments.plan import Plan, check_methods, read_plan
from infra.experiments.tables import mean_over_seeds, read_results
from infra.recipes.files import plan_path, plans, recipe_path
from infra.recipes.recipe import GIVEN, Judged, Ranked, load_recipe
from infra.runs.alternation import Alternation, Turn
from learner.checkpoints import Manifest, save_checkpoint
from search_env.catalogue.corpora import Query, write_whole
from search_env.engine.index import IndexVersion
from streams.errors import SettingsError
from streams.events import PolicyRef

TWO_ARMS = """
title = "two"
recipe = "leser"
baseline = "raw"
seeds = [3, 5]
[[arms]]
name = "raw"
search = "none"
[[arms]]
name = "SFT+GRPO"
train = {}
[[arms]]
name = "no λ"
seeds = [5]
train = { start = "SFT+GRPO", change = ["environment.reward.size_weight=0"] }
"""


@pytest.mark.parametrize("name", plans())
def test_every_plan_of_ours_can_be_read_and_changes_settings_that_exist(name: str) -> None:
    plan = read_plan(plan_path(name))
    recipe = (plan.recipe, read_toml(recipe_path(plan.recipe)))
    for arm in plan.arms:
        changes = assignments_layer(arm.train.change) if arm.train else {}
        assert combine(Settings, [recipe, (arm.name, changes)])


def test_an_untrained_arm_is_run_once_and_a_later_one_with_the_seeds_it_asks_for(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS))
    assert [plan.seeds_of(arm) for arm in plan.arms] == [(3,), (3, 5), (5,)]
    assert run_name("x", plan.arms[2], 5) == "x-no-5"


def test_some_arms_bring_those_that_they_need(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS), arms=("no λ",), seeds=(5,))
    assert [arm.name for arm in plan.arms] == ["raw", "SFT+GRPO", "no λ"]
    alone = read_plan(written(tmp_path, TWO_ARMS), arms=("SFT+GRPO",))
    assert [arm.name for arm in alone.arms] == ["raw", "SFT+GRPO"]


def test_another_arm_may_be_the_baseline_and_is_then_needed_instead(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS), seeds=(5,), arms=("no λ",), baseline="SFT+GRPO")
    assert (plan.baseline, [arm.name for arm in plan.arms]) == ("SFT+GRPO", ["SFT+GRPO", "no λ"])
    with pytest.raises(SettingsError, match="baseline: expected one of the arms"):
        read_plan(written(tmp_path, TWO_ARMS), baseline="BM25")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('baseline = "raw"', 'baseline = "BM25"', "baseline: expected one of the arms .raw, SFT"),
        ('name = "no λ"', 'name = "raw"', "arms with unique names"),
        ('start = "SFT+GRPO"', 'start = "SFT"', "expected an arm that is trained .SFT.GRPO., got 'SFT'"),
        ("train = {}", 'train = { by = "preferences" }', "arm 'SFT.GRPO': train.start: expected the arm whose logged"),
        ("train = { start", 'train = { by = "turns", start', "expected none, got 'SFT.GRPO'"),
        ("train = {}", 'train = { by = "chance" }', "Invalid enum value 'chance'"),
        ("train = {}", "trian = {}", "unknown field `trian`"),
        ("seeds = [3, 5]", "seeds = []", "length >= 1"),
        ("train = {}", "seeds = [3]\ntrain = {}", "arm 'no λ': expected only seeds that 'SFT.GRPO' has, got others"),
        ('title = "two"', "title = ", "plan.toml: expected TOML, got: Invalid"),
    ],
)
def test_a_plan_that_cannot_be_says_where_and_what(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_plan(written(tmp_path, TWO_ARMS.replace(before, after)))


def test_other_seeds_leave_out_the_arms_that_have_none_of_them(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, TWO_ARMS), seeds=(3,))
    assert [(arm.name, plan.seeds_of(arm)) for arm in plan.arms] == [("raw", (3,)), ("SFT+GRPO", (3,))]
    plan_file = written(tmp_path, TWO_ARMS.replace('search = "none"', 'search = "none"\nseeds = [3]'))
    with pytest.raises(SettingsError, match="the baseline 'raw' has none of the seeds"):
        read_plan(plan_file, seeds=(5,))


def test_an_arm_without_a_run_ranks_with_a_method_that_needs_none(tmp_path: Path) -> None:
    check_methods(read_plan(written(tmp_path, TWO_ARMS)), ("none", "rm3"))
    with pytest.raises(SettingsError, match=r"arm 'raw' ranks with 'none' and needs a run.*one of title, random"):
        check_methods(read_plan(written(tmp_path, TWO_ARMS)), ("title", "random"))


def test_an_unknown_plan_or_arm_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError,
        match="leser, leser-ablations, leser-behind-ranker, leser-clicks, leser-smollm2, relsum, relsum-ablations",
    ):
        plan_path("laser")
    with pytest.raises(SettingsError, match="got 'GRPO'"):
        read_plan(written(tmp_path, TWO_ARMS), arms=("GRPO",))


def test_a_folder_never_holds_two_experiments(tmp_path: Path) -> None:
    plan, folder = read_plan(written(tmp_path, TWO_ARMS)), tmp_path / "kept"
    judged = ([Query(id="q", text="red")], {"q": {"d": 1}})
    begin(folder, plan, index="shop", given=None)
    begin(folder, read_plan(written(tmp_path, TWO_ARMS), seeds=(3, 5, 7)), index="shop", given=judged)
    other = read_plan(written(tmp_path, TWO_ARMS.replace("size_weight=0", "size_weight=1")))
    with pytest.raises(SettingsError, match="arm 'no λ' differs; choose another --into"):
        begin(folder, other, index="shop", given=None)
    with pytest.raises(SettingsError, match="index, recipe"):
        begin(folder, plan, index="other", given=None)
    begin(folder, plan, index="shop", given=None)
    with pytest.raises(SettingsError, match="other judged queries; choose another --into"):
        begin(folder, plan, index="shop", given=(judged[0], {"q": {"d": 2}}))


def test_an_arm_is_remembered_while_others_are_asked_for_and_may_get_more_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    begin(folder, read_plan(written(tmp_path, TWO_ARMS)), index="shop", given=None)
    begin(folder, read_plan(written(tmp_path, TWO_ARMS), arms=("raw",)), index="shop", given=None)
    begin(folder, read_plan(written(tmp_path, TWO_ARMS.replace("seeds = [5]", ""))), index="shop", given=None)
    begin(folder, read_plan(written(tmp_path, TWO_ARMS), arms=("raw",)), index="shop", given=None)
    changed = read_plan(written(tmp_path, TWO_ARMS.replace("size_weight=0", "size_weight=1")))
    with pytest.raises(SettingsError, match="arm 'no λ' differs"):
        begin(folder, changed, index="shop", given=None)
    alike = read_plan(written(tmp_path, TWO_ARMS.replace('"SFT+GRPO"', '"SFT GRPO"')), arms=("SFT GRPO",))
    with pytest.raises(SettingsError, match="arm 'SFT GRPO' differs"):
        begin(folder, alike, index="shop", given=None)


class FakeTask:
    """Ranks two queries: the higher the name of the policy hashes, the better; remembers what it was asked."""

    def __init__(self, task: str) -> None:
        self.methods = load_recipe(task).methods
        self.asked: list[tuple[str, str, float, Settings]] = []

    def rank(
        self,
        app: App,
        run: RunSettings,
        *,
        policy: str,
        given: Judged | None,
        report: Report,
        temperature: float,
        top: int,
    ) -> list[Ranked]:
        self.asked.append((run.run, policy, temperature, app.settings))
        digest = hashlib.sha256(f"{run.run} {policy}".encode()).digest()
        scores = {f"q{number}": {"good": float(byte), "bad": 99.5} for number, byte in enumerate(digest[:20])}
        held_out = Ranked(name="held out", run=scores, qrels={query: {"good": 1, "bad": 0} for query in scores})
        mine = [Ranked(name=GIVEN, run={"q": {"d": 1.0}}, qrels=given[1])] if given else []
        return [held_out, *mine]


def fake_way(app: App, jobs: list[Job], *, turns: bool) -> Way:
    """Return a way that writes a run's settings and no run; by turns it makes two runs and a retriever."""

    def make(app: App, job: Job, held_out: Sequence[Query], report: Report) -> Made:
        assert [query.id for query in held_out] == ["q"]
        jobs.append(job)
        names = [f"{job.run}-t1", f"{job.run}-t2"] if turns else [job.run]
        for name in names:
            kept = RunSettings(
                run=name,
                recipe=job.plan.recipe,
                index=job.index,
                index_version="shop-1",
                seed=job.seed,
                updates=1,
                settings=app.settings,
            )
            write_run_settings(app.home.run(name), kept)
        change = (f"resume.retriever=r2-{job.seed}",) if turns else ()
        return Made(runs=tuple(names), answers=names[-1], change=change, curves={"loss": ((0.0, 2.0), (1.0, 1.0))})

    return Way(make, making.WAYS["turns" if turns else "updates"].by_hand)


@pytest.mark.parametrize("name", plans())
def test_each_plan_of_ours_gives_every_arm_its_row_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = msgspec.structs.replace(read_plan(plan_path(name)), samples=100)
    app = App(Home(tmp_path)).with_recipe(recipe_path(plan.recipe))
    task, made = FakeTask(app.settings.train.recipe), list[Job]()
    check_methods(plan, task.methods)
    manifest = IndexVersion(name="shop-1", alias="shop", documents=1, sha256="")
    write_whole(app.home.index("shop") / "manifest.json", msgspec.json.encode(manifest))
    monkeypatch.setattr("infra.experiments.arms.load_recipe", lambda _: task)
    ways = {way: fake_way(app, made, turns=way == "turns") for way in making.WAYS}
    monkeypatch.setattr(making, "WAYS", ways)
    given = ([Query(id="q", text="red")], {"q": {"d": 1}})

    begin(app.home.experiment("x"), plan, index="shop", given=given)

    def run() -> None:
        run_arms(app, plan, name="x", index="shop", given=given, report=lambda *_: None)

    run()
    rows = [(arm, seed) for arm in plan.arms for seed in plan.seeds_of(arm)]
    assert len(task.asked) == len(rows)
    assert len(made) == sum(len(plan.seeds_of(arm)) for arm in plan.arms if arm.train)
    for (arm, seed), (run_asked, policy, temperature, settings) in zip(rows, task.asked, strict=True):
        trainer = plan.trainer(arm)
        assert (policy, temperature) == (arm.search, arm.temperature)
        assert run_asked.startswith(run_name("x", trainer, seed) if trainer else f"shop-{seed}")
        if trainer and trainer.train and trainer.train.by == "turns":
            assert run_asked.endswith("-t2") and settings.resume.retriever == f"r2-{seed}"
        changes = [*(trainer.train.change if trainer and trainer.train else ()), *arm.change]
        assert (
            combine(Settings, [("row", msgspec.to_builtins(settings)), ("it", assignments_layer(changes))]) == settings
        )

    results = read_results(app.home, plan, name="x", index="shop")
    assert [each.name for each in results.sets] == ["held out", GIVEN]
    table = results.sets[0]
    assert [arm.name for arm in table.arms] == [arm.name for arm in plan.arms]
    assert all(set(arm.differences) == set(plan.measures) for arm in table.arms if arm.name != plan.baseline)
    assert set(results.curves["loss"]) == {arm.name for arm in plan.arms if arm.train}
    page = render_experiment(results)
    assert all(escape(line) in page for line in results.commands)

    run()
    assert len(task.asked) == len(rows), "what was done was done again"
    assert read_results(app.home, plan, name="x", index="shop") == results


def test_turns_answer_with_the_best_of_them_and_the_version_that_it_ended_with() -> None:
    turns = tuple(
        Turn(
            turn=number,
            run=f"r-t{number}",
            policy="1-a-000001",
            scored_by="r0-a",
            adapted=f"r{number}-a",
            before=0.0,
            after=score,
            told={"edge scale": 0.1 / number},
        )
        for number, score in enumerate((0.5, 0.7, 0.6), start=1)
    )
    made = made_by_turns(
        Alternation(name="r", index="i", seed=0, setting="resume.retriever", measure="RR@10", first="r0-a", turns=turns)
    )
    assert (made.answers, made.change) == ("r-t2", ("resume.retriever=r2-a",))
    assert made.runs == ("r-t1", "r-t2", "r-t3")
    assert made.curves["RR@10 on dev queries after each turn"] == ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6))
    assert made.curves["edge scale of each turn"] == ((1.0, 0.1), (2.0, 0.05), (3.0, 0.1 / 3))


def test_a_version_is_asked_of_the_first_run_that_holds_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = PolicyRef(lineage="1-a", step=0, sha256="0")
    for run, step in (("r-t1", 0), ("r-t2", 5)):
        manifest = Manifest(policy=msgspec.structs.replace(first, step=step), parent=None)
        save_checkpoint(home.run(run) / "checkpoints", manifest.policy, lambda folder, it=manifest: it)
    made = Made(runs=("r-t1", "r-t2"), answers="r-t2")
    assert [made.run_with(home, policy) for policy in ("latest", "0", "5", "knn")] == ["r-t2", "r-t1", "r-t2", "r-t2"]


def test_the_commands_name_every_change_and_where_a_run_begins(tmp_path: Path) -> None:
    plan, home = read_plan(written(tmp_path, TWO_ARMS)), Home(tmp_path)
    for row in ("sft-grpo.3", "sft-grpo.5", "no.5"):
        run = f"x-{row.replace('.', '-')}"
        write_whole(home.experiment("x") / "made" / f"{row}.json", msgspec.json.encode(Made(runs=(run,), answers=run)))
    begin(home.experiment("x"), plan, index="shop", given=None)
    lines = commands(home, plan, name="x", index="shop")
    assert (
        "SEARCHLOOP_ENVIRONMENT__REWARD__SIZE_WEIGHT=0 searchloop train --recipe leser --index shop --seed 5 "
        "--from x-sft-grpo-5 --run x-no-5"
    ) in lines
    assert "searchloop measure :none --recipe leser --index shop --seed 3 --top 100 --into x --row raw.3" in lines
    assert "searchloop measure x-no-5:latest --top 100 --into x --row no.5" in lines
    assert sum("searchloop measure" in line for line in lines) == 4
    begin(home.experiment("x"), plan, index="shop", given=([], {}), files=("q.jsonl", "q.tsv"))
    lines = commands(home, plan, name="x", index="shop")
    assert sum(line.endswith(" --held-out q.jsonl") for line in lines) == 3
    assert sum(" --queries q.jsonl --qrels q.tsv --top 100" in line for line in lines) == 4


def test_the_command_of_preferences_begins_at_the_arm_whose_groups_were_logged(tmp_path: Path) -> None:
    plan, home = (
        read_plan(written(tmp_path, TWO_ARMS.replace("{ start", '{ by = "preferences", start'))),
        Home(tmp_path),
    )
    for row in ("sft-grpo.3", "sft-grpo.5", "no.5"):
        run = f"x-{row.replace('.', '-')}"
        write_whole(home.experiment("x") / "made" / f"{row}.json", msgspec.json.encode(Made(runs=(run,), answers=run)))
    begin(home.experiment("x"), plan, index="shop", given=([], {}), files=("q.jsonl", "q.tsv"))
    (line,) = [line for line in commands(home, plan, name="x", index="shop") if "--prefer-from" in line]
    assert line.endswith(" searchloop train --prefer-from x-sft-grpo-5 --run x-no-5")


def test_an_arm_is_the_mean_over_its_seeds_query_by_query() -> None:
    assert mean_over_seeds([{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]) == {"a": 0.5, "b": 1.0}


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_is_whole_without_its_defaults() -> None:
    assert Plan(title="t", recipe="leser", baseline="raw", arms=()).seeds == (0, 1, 2)
