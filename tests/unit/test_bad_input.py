"""Bad input, at the command: one clear line, exit status 1, and nothing was made or started for it.

Kafka and Elasticsearch are at addresses where nobody answers: what is refused here was refused before they were asked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.cli import main
from learner.checkpoints import Manifest
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from search_env.engine.index import IndexVersion
from streams.events import PolicyRef

GOOD_LINE = '{"_id":"d1","title":"red mug","text":"mug","metadata":{}}\n'


class Ended(NamedTuple):
    """How a command ended; error is the last line of what it wrote to standard error."""

    status: int
    output: str
    error: str


Command = Callable[..., Ended]


@pytest.fixture
def searchloop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the command, called in a folder of its own; its home is the folder `home` there."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SEARCHLOOP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEARCHLOOP_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setenv("SEARCHLOOP_ELASTICSEARCH__URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SEARCHLOOP_ELASTICSEARCH__RETRIES_MAX", "0")

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["searchloop", "--home", "home", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, (captured.err.splitlines() or [""])[-1])

    return call


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Give a folder of good and bad files."""
    (tmp_path / "corpus.jsonl").write_text(GOOD_LINE)
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "mug"}\n')
    (tmp_path / "wordless.jsonl").write_text('{"_id": "q1", "text": "mug"}\n{"_id": "q2", "text": " "}\n')
    (tmp_path / "qrels.tsv").write_text("q1 0 d1 1\n")
    (tmp_path / "strangers.tsv").write_text("q9 0 d1 1\nq1 0 d77 1\n")
    (tmp_path / "good.run").write_text("q1 Q0 d1 1 2.5 tag\n")
    (tmp_path / "strangers.run").write_text("q9 Q0 d1 1 2.5 tag\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD_LINE.encode())[:-9])
    (tmp_path / "plain.jsonl.gz").write_text(GOOD_LINE)
    (tmp_path / "torn.jsonl").write_text(GOOD_LINE + '{"_id": "d2", \n')
    (tmp_path / "twice.jsonl").write_text(GOOD_LINE * 2)
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


@pytest.fixture
def shop(files: Path) -> Path:
    """Give the folder of an index with one document, as `index` leaves it in the home."""
    directory = files / "home" / "indexes" / "shop"
    directory.mkdir(parents=True)
    with gzip.open(directory / "documents.jsonl.gz", "wt") as stream:
        stream.write(GOOD_LINE)
    sha256 = hashlib.sha256(GOOD_LINE.encode()).hexdigest()
    version = IndexVersion(name="shop-1", alias="shop", documents=1, sha256=sha256)
    (directory / "manifest.json").write_bytes(msgspec.json.encode(version))
    return directory


@pytest.fixture
def checkpoint(shop: Path, files: Path) -> Path:
    """Give the one checkpoint of a run named `first` on that index."""
    run_dir = files / "home" / "runs" / "first"
    kept = RunSettings(
        run="first", recipe="leser", index="shop", index_version="shop-1", seed=0, updates=1, settings=Settings()
    )
    write_run_settings(run_dir, kept)
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32, positions_max=64)
    manifest = Manifest(policy=PolicyRef(lineage="1-first", step=0, sha256=""), parent=None)
    folder, _ = write_policy_checkpoint(run_dir / "checkpoints", build_tiny([GOOD_LINE] * 4, shape), manifest, None)
    return folder


BAD_FILES = {
    "missing.jsonl": r"error: missing\.jsonl: no such \w+ file\. Check the path \(now in .*\)\.",
    "cut.jsonl.gz": r"error: cut\.jsonl\.gz: damaged gzip \(.*\)\. Copy or download the \w+ file again\.",
    "plain.jsonl.gz": r"error: plain\.jsonl\.gz: expected gzip \(the name ends in \.gz\), got something else\. .*",
    "torn.jsonl": r"error: torn\.jsonl, line 2: expected one JSON object, got malformed JSON: .*",
    "twice.jsonl": r"error: twice\.jsonl, line 2: id 'd1' was used before, in line 1\. Keep one\.",
    "empty.jsonl": r"error: empty\.jsonl: expected at least one \w+, got an empty \w+\. Check how the file was made\.",
}
READERS = {
    "index": ("index", "FILE", "--name", "shop"),
    "demo": ("demo", "--corpus", "FILE", "--queries", "queries.jsonl", "--qrels", "qrels.tsv"),
    "train": ("train", "--queries", "FILE"),
    "held-out": ("train", "--held-out", "FILE"),
    "relevance": ("relevance", "--queries", "FILE", "--qrels", "qrels.tsv"),
    "search": ("search", "--queries", "FILE", "--policy", "none", "--run-file", "out.run"),
    "expand": ("expand", "--queries", "FILE"),
    "scores": ("evaluate", "out.run", "--relevance-of", "shop", "--queries", "FILE", "--scores-out", "scores.run"),
}


def call_with(searchloop: Command, reader: str, file: str) -> Ended:
    return searchloop(*(file if part == "FILE" else part for part in READERS[reader]))


@pytest.mark.parametrize("file", BAD_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_a_bad_file_is_refused_by_name_and_line(searchloop: Command, files: Path, reader: str, file: str) -> None:
    ended = call_with(searchloop, reader, file)
    assert re.fullmatch(BAD_FILES[file], ended.error), ended.error
    assert (ended.status, ended.output) == (1, "")
    assert not (files / "home").exists()


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("index", "demo")])
def test_a_query_without_text_is_named(searchloop: Command, files: Path, reader: str) -> None:
    ended = call_with(searchloop, reader, "wordless.jsonl")
    assert ended.status == 1
    assert ended.error == (
        "error: wordless.jsonl, line 2: query 'q2' has no text. Give it a 'text', or leave the line out."
    )


def test_a_folder_is_no_corpus(searchloop: Command, files: Path) -> None:
    ended = searchloop("index", ".")
    assert (ended.status, ended.error) == (
        1,
        "error: .: cannot read this corpus file: Is a directory. Give a readable file.",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("relevance", "--index", "shop", "--queries", "queries.jsonl", "--qrels", "strangers.tsv"),
        ("train", "--index", "shop", "--dev-queries", "queries.jsonl", "--dev-qrels", "strangers.tsv"),
        ("demo", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl", "--qrels", "strangers.tsv"),
    ],
)
def test_judgments_of_nothing_that_is_there_are_refused(searchloop: Command, shop: Path, arguments: list[str]) -> None:
    ended = searchloop(*arguments)
    assert ended.status == 1
    assert re.fullmatch(
        r"error: .*: 2 judgments name 1 unknown queries and 1 unknown documents \(query 'q9', document 'd77'\)\. "
        r"Use the corpus and queries that were judged\.",
        ended.error,
    ), ended.error


def test_judgments_for_another_run_are_refused(searchloop: Command, files: Path) -> None:
    ended = searchloop("evaluate", "strangers.run", "--qrels", "qrels.tsv")
    assert ended.status == 1
    assert ended.error == (
        "error: strangers.run: none of its 1 queries is judged in qrels.tsv (the run has 'q9', the qrels have 'q1'); "
        "give the qrels that belong to the run"
    )


def test_no_elasticsearch_is_one_line_with_its_address(searchloop: Command, shop: Path) -> None:
    for arguments in (
        ("index", "corpus.jsonl", "--name", "shop"),
        ("search", "--index", "shop", "--queries", "mug", "--policy", "none", "--run-file", "out.run"),
    ):
        ended = searchloop(*arguments)
        assert ended.status == 1
        assert ended.error.startswith("error: ") and ended.error.endswith(
            "Elasticsearch did not answer: ConnectionError: 127.0.0.1:1: Failed to establish a new connection: "
            "[Errno 111] Connection refused. Look with: searchloop status"
        )
    assert not (shop.parent / "intents.writing").exists()


@pytest.fixture
def own_services(monkeypatch: pytest.MonkeyPatch, searchloop: Command) -> None:
    """Leave the services to searchloop, which then has to start them."""
    monkeypatch.delenv("SEARCHLOOP_KAFKA__BOOTSTRAP")
    monkeypatch.delenv("SEARCHLOOP_ELASTICSEARCH__URL")


@pytest.mark.usefixtures("own_services")
@pytest.mark.parametrize("verb", ["up", "index"])
def test_a_port_in_use_is_named_with_its_setting(
    searchloop: Command, files: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("SEARCHLOOP_SERVICES__KAFKA_PORT", str(port))
        ended = searchloop(*(["up"] if verb == "up" else ["index", "corpus.jsonl"]))
    assert ended.status == 1
    assert ended.error == (
        f"error: port {port} for kafka is in use by another process. Stop it, or set services.kafka_port to another "
        "port, or to 0 for a free one"
    )


@pytest.mark.usefixtures("own_services")
@pytest.mark.parametrize("verb", ["up", "index"])
def test_no_jdk_says_what_to_install(
    searchloop: Command, files: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("SEARCHLOOP_SERVICES__JAVA_HOME", str(files / "no-java"))
    ended = searchloop(*(["up"] if verb == "up" else ["index", "corpus.jsonl"]))
    assert ended.status == 1
    assert ended.error.startswith(
        "error: Elasticsearch needs a JDK (not a JRE) 21 or newer: no Java was found. Install one (for example Temurin"
    )


@pytest.mark.parametrize("version", ["0", "1-first-000000", "latest"])
def test_an_unreadable_checkpoint_is_named(searchloop: Command, checkpoint: Path, version: str) -> None:
    weights = checkpoint / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-8])
    ended = searchloop("expand", "--index", "shop", "--queries", "mug", "--policy", version)
    assert ended.status == 1
    if version == "latest":
        assert re.fullmatch(r"error: expected a whole checkpoint in .*/first/checkpoints, found none\. .*", ended.error)
    else:
        assert re.fullmatch(
            r"error: checkpoint 1-first-000000: model\.safetensors should have sha256 \w{12}…, has \w{12}…\. "
            r"Use another of the versions kept: 1-first-000000",
            ended.error,
        ), ended.error


def test_a_version_that_is_not_there_is_answered_with_those_that_are(searchloop: Command, checkpoint: Path) -> None:
    ended = searchloop("expand", "--index", "shop", "--queries", "mug", "--policy", "7")
    assert ended.status == 1
    assert ended.error == (
        "error: --policy: expected latest, best, a step or one of the versions kept (1-first-000000), got '7'"
    )


def test_settings_of_a_run_that_cannot_be_read_are_one_line(searchloop: Command, checkpoint: Path) -> None:
    (checkpoint.parents[1] / "settings.json").write_text('{"run": "first"')
    ended = searchloop("search", "--queries", "mug", "--run", "first", "--run-file", "out.run")
    assert ended.status == 1
    assert re.fullmatch(
        r"error: .*/first/settings\.json: .*\. It is damaged.* start a new run with --run NAME", ended.error
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train", "--recipe", "mine.toml"), r"--recipe: expected a TOML file, found none at mine\.toml"),
        (("train", "--recipe", "mine"), r"--recipe: expected one of .*leser.*, or a path to a TOML file, got 'mine'"),
        (("--config", "mine.toml", "status"), r"--config: expected a TOML file, found nothing at mine\.toml"),
        (("train", "--from", "other"), r"--run: expected one of no runs yet, got 'other'\. Run: searchloop train"),
        (("run", "learner", "--run", "other"), r"--run: expected one of no runs yet, got 'other'\. .*"),
        (("index", "corpus.jsonl", "--name", "My Shop"), r"index: expected 1 to 63 of a-z, .* got 'My Shop'"),
    ],
)
def test_a_name_of_nothing_is_answered_with_the_option(
    searchloop: Command, files: Path, arguments: list[str], complaint: str
) -> None:
    ended = searchloop(*arguments)
    assert ended.status == 1
    assert re.fullmatch(f"error: {complaint}", ended.error), ended.error


def test_a_list_in_the_environment_that_is_no_json_names_the_variable(
    searchloop: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCHLOOP_POLICY__LORA__TARGETS", "[q_proj")
    ended = searchloop("up")
    assert ended.status == 1
    assert ended.error.startswith("error: SEARCHLOOP_POLICY__LORA__TARGETS: expected a list in JSON, got '[q_proj' (")


@pytest.mark.parametrize("place", ["home/indexes/shop", "corpus.jsonl/out.run"])
def test_a_run_file_that_cannot_be_written_is_named(
    searchloop: Command, shop: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("infra.recipes.leser.searching.search_queries", lambda *_, **__: {})
    ended = searchloop("search", "--index", "shop", "--queries", "mug", "--policy", "none", "--run-file", place)
    assert ended.status == 1
    assert re.fullmatch(
        rf"error: {place}: cannot be written \(.*\)\. Make room, or choose another place\.", ended.error
    )
    assert not list(shop.parents[2].glob("**/*.writing"))


def test_a_refusal_of_the_operating_system_is_one_line(searchloop: Command, files: Path) -> None:
    (files / "home").mkdir()
    (files / "home" / "services").write_text("a file where a folder belongs")
    ended = searchloop("status")
    assert ended.status == 1
    assert ended.error.startswith("error: ") and "home/services" in ended.error
