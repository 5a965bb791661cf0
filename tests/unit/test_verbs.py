"""The verbs: how many, what their help says, what their old names do, and which options do not apply together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

import infra.commands.old_names
import infra.commands.search
import infra.recipes.leser.relevance
import infra.runs.preferring
from infra.app.app import App
from infra.app.home import Home
from infra.cli import OLD_NAMES, VERBS, cli
from search_env.catalogue.corpora import Ranking

CONTEXT = click.Context(cli)
VERBS_MAX = 33
IMPERATIVES = """
    Attach Bring Check Compare Copy Evaluate Import Join Let List Load Measure Print Read Rebuild Repeat Replay Report
    Rescore Resend Run Score Search Send Serve Show Start Stop Train Verify Write
"""
NEW_COMMANDS = {
    "dense": "searchloop search --by vectors",
    "score": "searchloop evaluate --relevance-of",
    "acls": "searchloop doctor --acls",
    "lineage": "searchloop report --run RUN --policy",
    "prefer": "searchloop train --prefer-from",
    "what-changed": "searchloop listen --what-changed",
}


def with_subcommands(name: str, command: click.Command | None) -> Iterator[tuple[str, click.Command]]:
    assert command is not None
    yield name, command
    if isinstance(command, click.Group):
        for each in command.list_commands(CONTEXT):
            yield from with_subcommands(f"{name} {each}", command.get_command(CONTEXT, each))


COMMANDS = dict(
    pair for name in (*VERBS, *OLD_NAMES) for pair in with_subcommands(name, cli.get_command(CONTEXT, name))
)


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Home(tmp_path / "home"))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"_id": "q", "text": "red mug"}\n')
    (tmp_path / "raw.run").write_text("q Q0 d1 1 2.0 raw\nq Q0 d2 2 1.0 raw\n")
    (tmp_path / "new.run").write_text("q Q0 d3 1 2.0 new\nq Q0 d1 2 1.0 new\n")
    (tmp_path / "qrels").write_text("q 0 d3 1\n")
    return tmp_path


def call(app: App, name: str, *arguments: str) -> Result:
    verb = cli.get_command(CONTEXT, name)
    assert verb is not None
    return CliRunner().invoke(verb, arguments, obj=app, prog_name=name)


def both(app: App, old: Sequence[str], new: Sequence[str]) -> Result:
    """Call the old name and the new command, check what the old one says, and return its result."""
    before, now = call(app, *old), call(app, *new)
    assert (before.exit_code, now.exit_code) == (0, 0), (before.output, now.output)
    assert before.stdout == now.stdout
    assert before.stderr.count("\n") == now.stderr.count("\n") + 1
    assert NEW_COMMANDS[old[0]] in before.stderr
    return before


def test_at_most_twenty_eight_verbs_are_shown() -> None:
    assert len(VERBS) <= VERBS_MAX
    shown = CliRunner().invoke(cli, ["--help"]).output
    listed = {line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()}
    assert set(VERBS) <= listed
    assert not listed & set(OLD_NAMES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_begins_with_an_imperative_and_has_an_example_and_every_option_has_a_help(name: str) -> None:
    command = COMMANDS[name]
    text = inspect.cleandoc(command.help or "")
    assert text.split()[0] in IMPERATIVES.split()
    assert f"Example:\n  searchloop {name.split()[0]}" in text or name in OLD_NAMES
    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_is_hidden_and_its_help_names_the_new_command(name: str) -> None:
    assert COMMANDS[name].hidden
    said = CliRunner().invoke(cli, [name, "--help"])
    assert said.exit_code == 0
    assert NEW_COMMANDS[name].partition(" --")[0] in said.output
    assert "the old name of" in " ".join(said.output.split())


def test_acls_prints_what_doctor_prints(app: App) -> None:
    users = ("--user", "sink=warehouse")
    both(app, ("acls", "--run", "shop-0", *users), ("doctor", "--acls", "shop-0", *users))
    said = both(app, ("acls", "--run", "shop-0", "--json"), ("doctor", "--acls", "shop-0", "--json"))
    assert {right["role"] for right in msgspec.json.decode(said.stdout)} >= {"sink", "operator"}


def test_prefer_makes_the_run_that_train_makes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        infra.runs.preferring, "prefer_run", lambda _, *, run, into, report: calls.append((run, into)) or 7
    )
    said = both(app, ("prefer", "--run", "a", "--into", "b"), ("train", "--prefer-from", "a", "--run", "b"))
    assert calls == [("a", "b")] * 2
    assert said.stdout == "b: policy 0 has learned from 7 pairs of a\n"
    found = call(app, "train", "--prefer-from", "a", "--run", "b", "--json").stdout
    assert msgspec.json.decode(found) == {"run": "b", "prefer_from": "a", "pairs": 7}


def test_dense_searches_what_search_by_vectors_searches(app: App, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(_: App, asked: object, vectors: object, **others: object) -> None:
        calls.append((list(asked) if isinstance(asked, list) else asked, vectors, others))

    for module in (infra.commands.search, infra.commands.old_names):
        monkeypatch.setattr(module, "search_by_vectors", record)
    options = "--index shop --texts policy --run r --policy 3 --retriever r1 --seed 2"
    old = f"dense {options} --queries q.jsonl a.run --queries q.jsonl b.run"
    new = f"search --by vectors {options} --queries q.jsonl --run-file a.run --queries q.jsonl --run-file b.run"
    both(app, old.split(), new.split())
    new = "search --by vectors --queries q.jsonl --run-file a.run"
    both(app, ("dense", "--queries", "q.jsonl", "a.run"), new.split())
    assert calls[0] == calls[1]
    assert calls[2] == calls[3]
    asked, _, others = calls[0]
    assert [(len(queries), str(out)) for queries, out in asked] == [(1, "a.run"), (1, "b.run")]
    assert others == {"index": "shop", "run_name": "r", "policy": "3", "top": 100}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Let a relevance model give d1 0.1, d2 0.2, and so on; return the index, files and depth of each call."""
    calls = []

    def score(
        folder: Path, _: object, rankings: Sequence[dict[str, Ranking]], *, top: int, **_others: object
    ) -> object:
        calls.append((folder.name, len(rankings), top))
        ids = sorted({document for ranking in rankings for document in ranking["q"].ids[:top]}, reverse=True)
        return {"q": Ranking(ids, [int(document[1:]) / 10 for document in ids])}

    monkeypatch.setattr(infra.recipes.leser.relevance, "score_rankings", score)
    return calls


def test_score_writes_what_evaluate_writes(app: App, files: Path, scored: list[tuple[str, int, int]]) -> None:
    runs, common = ("raw.run", "new.run"), ("--queries", "q.jsonl", "--top", "2")
    old = ("score", *runs, *common, "--index", "shop", "--out", "s.run")
    both(app, old, ("evaluate", *runs, *common, "--relevance-of", "shop", "--scores-out", "s.run"))
    assert scored == [("shop", 2, 2)] * 2
    assert (files / "s.run").read_text() == "".join(
        f"q Q0 d{number} {rank} 0.{number} relevance\n" for rank, number in enumerate((3, 2, 1), start=1)
    )


def test_scores_computed_now_evaluate_as_scores_from_a_file(
    app: App, files: Path, scored: list[tuple[str, int, int]]
) -> None:
    common = ("evaluate", "new.run", "--qrels", "qrels", "--baseline", "raw.run", "--json", "--samples", "100")
    now = call(app, *common, "--relevance-of", "shop", "--queries", "q.jsonl", "--scores-out", "s.run")
    assert now.exit_code == 0, now.output
    assert scored == [("shop", 2, 10)]
    assert call(app, *common, "--relevance", "s.run").stdout == now.stdout
    gain = msgspec.json.decode(now.stdout)["runs"][1]["differences"]["relevance gain"]["interval"]["value"]
    assert gain == pytest.approx((0.3 + 0.1) / (0.1 + 0.2) - 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("search --queries mug --run-file o --adapt 4", "--adapt: expected --by vectors with it, got --by words. Add"),
        ("search --queries mug --run-file o --seed 0", "--seed: expected --by vectors"),
        (
            "search --by vectors --queries mug --run-file o --rerank 9",
            "--rerank: expected --by words with it, got --by",
        ),
        ("search --by vectors --queries mug --run-file o --policy 3", "--policy: expected --texts policy with it, got"),
        ("search --by vectors --queries mug --run-file o --run r", "--run belongs to --texts policy"),
        ("search --by vectors --queries mug --run-file o --tune 4 --retriever-of x", "not of --retriever-of x"),
        ("search --queries mug --queries cup --run-file o", "expected a file of its own for each of the 2 --queries"),
        ("search --queries mug --queries cup --run-file o --run-file o", "Give each --queries its own --run-file"),
        ("evaluate raw.run", "Missing option '--qrels'"),
        ("evaluate raw.run --qrels qrels --scores-out s", "--scores-out: expected --relevance-of with it, got none"),
        ("evaluate raw.run --qrels qrels --relevance-of shop", "--relevance-of: expected --queries with it, got none"),
        (
            "evaluate raw.run --qrels q --relevance-of i --queries q --relevance s",
            "--relevance: expected a command with",
        ),
        ("evaluate raw.run --relevance-of i --queries q --scores-out s --json", "--json: expected --qrels with it"),
        ("doctor --user sink=warehouse", "--user: expected --acls with it, got none"),
        ("doctor --acls shop-0 --user warehouse", "--user: expected ROLE=USER"),
        ("report --run r --policy 1 --html page", "--html: expected a command without --policy, got both"),
        ("report --run r --event g --html page", "--html: expected a command without --event, got both"),
        ("report --run r --policy 1 --event g", "--event: expected a command without --policy, got both"),
        ("train --prefer-from r", "--prefer-from: expected --run with it, got none"),
        ("train --prefer-from r --run s --updates 3", "--updates: expected a command without --prefer-from, got both"),
        ("train --prefer-from r --run s --recipe leser", "--recipe: expected a command without --prefer-from"),
    ],
)
def test_options_that_do_not_apply_together_are_refused(app: App, files: Path, line: str, says: str) -> None:
    refused = call(app, *line.split())
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert says in refused.stderr
    assert not app.home.root.exists()
