"""The loop at the command: Ctrl-C tears nothing, and a policy that writes rubbish breaks nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import msgspec
import pytest
import torch
from click.testing import CliRunner

from infra.app.app import App
from infra.app.home import SETTINGS_FILE
from infra.commands.search import expand, search
from infra.recipes.decoding import decode_requests
from infra.recipes.leser import expanding
from infra.recipes.recipe import Prepared
from infra.runs.living import living_workers
from infra.runs.training import stream
from learner.checkpoints import Manifest, load_current, read_manifest
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny
from search_env.catalogue.corpora import read_run
from services.local import Endpoints
from streams.events import Generation, PolicyRef, Request
from tests.commands import command, environment, interrupt, start
from tests.loop.conftest import SMALL, quiet

Make = Callable[..., Prepared]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Give a recipe that changes nothing: the settings come from variables."""
    path = tmp_path / "plain.toml"
    path.write_text("")
    return str(path)


def test_ctrl_c_stops_every_worker_and_the_same_command_goes_on(
    local_services: Endpoints, small_world: App, new_run: Make, recipe: str
) -> None:
    home, run = small_world.home, new_run(SMALL).run
    variables = environment(local_services, SMALL)
    train = ["train", "--recipe", recipe, "--index", "small", "--run", run, "--updates"]
    process = start(home.root, *train, "500", variables=variables, until="updates: ")
    assert len([role for name, role, _ in living_workers(home.runs) if name == run]) == 4
    assert interrupt(process) == (130, "stopped")
    assert [role for name, role, _ in living_workers(home.runs) if name == run] == []

    checkpoints = home.run(run) / "checkpoints"
    _, manifest = load_current(checkpoints)
    assert [path.name for path in checkpoints.iterdir() if path.name.startswith(".")] == []
    for folder in checkpoints.glob("*-*-*"):
        read_manifest(folder, verify=True)
    with duckdb.connect(str(home.run(run) / "searchloop.duckdb"), read_only=True) as ledger:
        assert ledger.execute("SELECT count(*) FROM rewards").fetchone() != (0,)

    updates = manifest.policy.step + 2
    ended = subprocess.run(
        command(home.root, *train, str(updates), "--json"), env=variables, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["updates"] == updates


def test_ctrl_c_in_the_warm_up_leaves_no_half_policy(
    local_services: Endpoints, small_world: App, unique_name: str, recipe: str
) -> None:
    train = ["train", "--recipe", recipe, "--index", "small", "--run", unique_name, "--updates", "2"]
    variables = environment(local_services, SMALL)
    process = start(small_world.home.root, *train, variables=variables, until="warm-up")
    assert interrupt(process) == (130, "stopped")
    folder = small_world.home.run(unique_name)
    assert not (folder / "checkpoints").exists()
    assert not (folder / SETTINGS_FILE).exists(), "a search would take it for a run that has learned"


def test_a_policy_that_writes_rubbish_is_searched_as_the_raw_query_and_breaks_nothing(
    small_world: App, new_run: Make, tmp_path: Path
) -> None:
    prepared = new_run(SMALL, updates=2)
    app, run_dir = small_world.with_settings(SMALL), small_world.home.run(prepared.run)
    untaught = build_tiny((asked.query for asked in prepared.asked), SMALL.policy.tiny)
    # All words are alike to it: random weights may keep the format by chance, and for which query differs by processor.
    torch.nn.init.zeros_(untaught.model.get_parameter("model.norm.weight"))
    rubbish = PolicyRef(lineage="9-rubbish", step=0, sha256="")
    write_policy_checkpoint(run_dir / "checkpoints", untaught, Manifest(policy=rubbish, parent=None), None)
    queries = tmp_path / "queries.jsonl"
    asked = [{"_id": asked.query_id, "text": asked.query} for asked in prepared.asked[:20]]
    queries.write_bytes(msgspec.json.Encoder().encode_lines(asked))

    said = []

    def call(verb: object, *arguments: str) -> str:
        common = ["--index", "small", "--queries", str(queries), "--run", prepared.run, *arguments]
        answer = CliRunner().invoke(verb, common, obj=app, catch_exceptions=False)  # type: ignore[arg-type]
        assert answer.exit_code == 0, answer.output
        said.append(answer.stderr)
        return answer.stdout

    written = [json.loads(line) for line in call(expand, "--json").splitlines()]
    assert [(item["valid"], item["expansions"]) for item in written] == [(False, [])] * 20
    assert "0 of 20 answers are valid (0%)" in said[-1]
    assert "no valid answer: searched as it is" in call(expand)
    for policy in ("none", "latest"):
        call(search, "--policy", policy, "--run-file", str(tmp_path / f"{policy}.run"), "--top", "50")
    assert read_run(tmp_path / "latest.run") == read_run(tmp_path / "none.run")
    call(search, "--policy", "shown", "--run-file", str(tmp_path / "shown.run"), "--top", "50")
    assert read_run(tmp_path / "shown.run") != read_run(tmp_path / "none.run")

    summary = stream(app, prepared, updates=2, seed=0, report=quiet)
    assert (summary.updates, summary.groups_failed, summary.groups_expired) == (2, 0, 0)
    # Sampled, one text in a hundred keeps the format by chance; all others are worth nothing.
    assert summary.valid_last < 0.5 and summary.reward_last < 0.1
    assert summary.groups_trained + summary.groups_flat == 2 * SMALL.batch.groups


def test_head_queries_are_kept_and_need_no_model_when_they_are_asked(
    streamed: tuple[App, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, prepared = streamed
    texts = [asked.query for asked in prepared.asked[:6]]
    traffic = tmp_path / "traffic.jsonl"
    often = [*texts, *texts[:3], *texts[:3]]
    traffic.write_bytes(msgspec.json.Encoder().encode_lines([{"_id": f"{n}", "text": t} for n, t in enumerate(often)]))

    def call(verb: object, *arguments: str) -> str:
        common = ["--index", "small", "--queries", str(traffic), "--run", prepared.run, *arguments]
        answer = CliRunner().invoke(verb, common, obj=app, catch_exceptions=False)  # type: ignore[arg-type]
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    kept = [json.loads(line) for line in call(expand, "--head", "3", "--keep", "--json").splitlines()]
    assert [item["query"] for item in kept] == texts[:3]
    call(search, "--policy", "latest", "--run-file", str(tmp_path / "decoded.run"), "--top", "20")

    decoded: list[str] = []

    def only_what_is_missing(requests: Sequence[Request], *given: object, **named: object) -> Iterator[Generation]:
        decoded.extend(request.query for request in requests)
        return decode_requests(requests, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(expanding, "decode_requests", only_what_is_missing)
    call(search, "--policy", "latest", "--run-file", str(tmp_path / "kept.run"), "--top", "20")
    assert decoded == texts[3:]
    assert read_run(tmp_path / "kept.run") == read_run(tmp_path / "decoded.run")
    again = [json.loads(line) for line in call(expand, "--head", "3", "--json").splitlines()]
    assert (again, decoded) == (kept, texts[3:])
