"""What a verdict says: sound, unfinished or broken; in which mode; what that cannot see; and on whose word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import msgspec
import pytest
from click.testing import CliRunner, Result

from infra.app.home import RunFolder
from infra.cli import cli
from infra.runs.verification import prove
from learner.checkpoints import MANIFEST
from storage.archive import ARCHIVE, find_segments
from storage.ledger import LEDGER
from storage.sink import Sink
from storage.verification import reading
from storage.verification.account import Account
from storage.verification.rules import RULES
from streams.codec import content_sha256, encode_event
from streams.events import DeadLetter, Event, Outcome, Position
from streams.topics import topic_name
from streams.whole_file import file_sha256
from tests.finished_run import UPDATES, FakeTopics, store, write_run
from tests.services.test_sink import QUICK
from tests.stored_events import RUN, generation, reward, small_run
from tests.tampered_run import Tampered
from tests.tampering.kinds import made_up_update

Make = Callable[..., Tampered]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Give a function that writes a run of its own, in a home's folder of runs."""

    def made(name: str = RUN, **how: object) -> Tampered:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        return Tampered(folder, write_run(folder, **how))  # type: ignore[arg-type]

    return made


def proved(
    run: Tampered, *, kafka: bool = False, rebuild: bool = False, working: bool = False, trusted: str | None = None
) -> Account:
    topics = run.topics.seen() if kafka else None
    return prove(RunFolder(run.folder), run=RUN, topics=topics, working=working, rebuild=rebuild, trusted=trusted)


def said(account: Account) -> list[str]:
    return [f"{finding.rule}: {finding.where}: {finding.what}" for finding in account.findings]


def verb(run: Tampered, *arguments: str) -> Result:
    home = str(run.folder.parents[1])
    return CliRunner().invoke(cli, ["--home", home, "verify", "--run", run.folder.name, "--offline", *arguments])


def better(outcome: Outcome, number: int) -> Outcome:
    return msgspec.structs.replace(outcome, reward=outcome.reward / 2) if number == 2 and outcome.reward else outcome


def test_a_seal_that_was_kept_shows_a_past_that_was_rewritten_alike_in_every_copy(make: Make) -> None:
    run, rewritten = make(), make("other", changed=better)
    seal = proved(run).seal
    assert seal is not None and proved(run, trusted=seal).verdict == "sound"
    account = proved(rewritten, kafka=True, rebuild=True)
    assert account.verdict == "sound" and account.seal != seal
    assert any("keep the seal elsewhere" in sentence for sentence in account.unseen)
    lines = said(proved(rewritten, trusted=seal))
    assert [line for line in lines if line.startswith("trusted value: ")] == lines != []


def test_a_seal_stays_in_the_chain_when_its_checkpoint_is_deleted_and_not_when_the_run_is_set_back(make: Make) -> None:
    early, run = make("early", updates=2), make()
    old, new = proved(early), proved(run)
    assert old.seal is not None and new.seal is not None and old.manifest_sha256 is not None
    account = proved(run, trusted=old.seal)
    assert account.trusted is not None
    assert (account.verdict, account.trusted.version, account.trusted.later) == (
        "sound",
        "1-aaaaaa-000002",
        UPDATES - 2,
    )
    assert proved(early, trusted=new.seal).verdict == "broken"
    # The manifest of a deleted checkpoint cannot be hashed again: its hash alone would prove nothing.
    assert proved(run, trusted=old.manifest_sha256).verdict == "broken"
    assert proved(early, trusted=old.manifest_sha256).verdict == "sound"
    for kept in (
        file_sha256(run.checkpoint(0) / MANIFEST),
        content_sha256(encode_event(run.told(-2).update or generation(0))),
    ):
        assert proved(run, trusted=kept).verdict == "sound"


def test_the_verb_prints_the_seal_and_fails_for_another_one(make: Make) -> None:
    run = make()
    result = verb(run)
    assert result.exit_code == 0, result.output
    seal = proved(run).seal
    assert f"seal: {seal} (keep it elsewhere, for --trusted)" in result.output
    assert "verified: " in result.output and "(offline)" in result.output
    assert "not seen: Kafka: whether its bytes equal these" in result.output
    assert "unproved     1 groups rejected" in result.output
    assert verb(run, "--trusted", str(seal)).exit_code == 0
    result = verb(run, "--trusted", "0" * 64)
    assert result.exit_code == 1 and "trusted value: " in result.output
    (account,) = json.loads(verb(run, "--json").stdout)
    assert (account["verdict"], account["mode"], account["seal"]) == ("sound", "offline", seal)


def test_a_stalled_run_is_not_verified_and_has_an_exit_status_of_its_own(make: Make) -> None:
    run = make(updates=3)
    settings = run.folder / "settings.json"
    settings.write_text(settings.read_text().replace('"updates": 3', f'"updates": {UPDATES}'))
    result = verb(run)
    assert result.exit_code == 3, result.output
    assert "the run has ended: run test: 3 of 5 updates made" in result.output
    assert "sound so far, unfinished: " in result.output and "verified" not in result.output
    (account,) = json.loads(verb(run, "--json").stdout)
    assert account["verdict"] == "unfinished"
    assert {finding["severity"] for finding in account["findings"]} == {"unfinished"}
    assert proved(run, working=True).verdict == "sound"


def test_requests_that_were_granted_and_wait_are_told_and_those_that_lie_ready_are_not(make: Make) -> None:
    run = make(updates=3)
    settings = run.folder / "settings.json"
    settings.write_text(settings.read_text().replace('"updates": 3', f'"updates": {UPDATES}'))
    account = proved(run)
    generator = account.stages[0]
    assert (generator.waiting, generator.not_asked) == (4, 2)  # Granted for the next update; and beyond that.
    assert "waiting: 4 requests" in said(account)[0]


def test_only_building_anew_sees_old_rows_of_a_long_log_and_the_verdict_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "NEWEST_RECORDS", 64)
    records = small_run(600, batch=100)
    store(tmp_path, records)
    run = Tampered(tmp_path, FakeTopics(records))
    account = proved(run)
    unread = 3 * 512  # Of requests, generations and rewards; every update was read.
    assert any(f"rows against bytes for the {unread:,} records" in sentence for sentence in account.unseen)
    run.sql("UPDATE outcomes SET reward = reward + 1e-9 WHERE record_offset = 5 AND candidate = 3")
    assert not [line for line in said(proved(run)) if line.startswith("rebuilt")]
    assert [line for line in said(proved(run, rebuild=True)) if line.startswith("rebuilt")]
    run.sql("UPDATE updates SET metrics = MAP {'loss': 9.0} WHERE step = 1")
    assert [line for line in said(proved(run)) if line.startswith("rebuilt from the log: table updates")]


def test_what_a_worker_refused_breaks_nothing(make: Make) -> None:
    """Somebody wrote a reward with another group's generation, and a generation with an id that he made up."""
    forged = msgspec.structs.replace(generation(2), group_id="made up")
    poisoned = msgspec.structs.replace(reward(2), group_id="made up", generation=forged)

    def letter(kind: str, offset: int, stage: str, buried: Event) -> tuple[str, DeadLetter]:
        source = Position(topic=topic_name(RUN, kind), partition=0, offset=offset)
        value = encode_event(buried)
        event = DeadLetter(source=source, key=b"", value=value, headers=(), stage=stage, error="forged", attempts=1)
        return "dead-letters", event

    written: list[tuple[str, Event]] = [("generations", forged), ("rewards", poisoned)]
    run = make(extra=written)
    lines = said(proved(run))
    assert any(line.startswith("ids are functions of the log") for line in lines)
    shutil.rmtree(run.folder)
    run = make(
        extra=[*written, letter("generations", 21, "environment", forged), letter("rewards", 21, "learner", poisoned)]
    )
    assert said(proved(run, kafka=True, rebuild=True)) == []


def test_a_run_of_an_older_searchloop_is_proved_as_far_as_its_records_go(make: Make) -> None:
    run = make(chained=False)
    # A ledger that was brought up to date has nothing in the columns that its rows were written without.
    run.sql("UPDATE updates SET record_sha256 = NULL")
    account = proved(run, kafka=True, rebuild=True)
    assert said(account) == []
    assert account.seal is None and account.verdict == "sound"
    assert any("an older searchloop, which did not record the chain" in sentence for sentence in account.unseen)
    assert account.unchecked == {"failed, by an older searchloop": 2}
    run.manifest(-1, recent_groups=())
    assert any("recent_groups lacks groups" in line for line in said(proved(run)))


def test_a_damaged_segment_of_a_live_run_gives_an_account(make: Make) -> None:
    run = make()
    path = run.segment("rewards")
    path.write_bytes(path.read_bytes()[:50])
    with Sink(run.folder / LEDGER, QUICK):
        account = proved(run)
    assert account.live and account.mode == "offline, live"
    assert any(line.startswith("archive: ") and "damaged file" in line for line in said(account))


def test_a_ledger_and_an_archive_that_cannot_be_read_give_an_account(make: Make) -> None:
    run = make()
    (run.folder / LEDGER).write_bytes(b"no database")
    for path in find_segments(run.folder / ARCHIVE):
        path.write_bytes(b"no parquet")
    result = verb(run)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "everything can be read: " in result.output and "archive: " in result.output


def test_what_no_record_vouches_for_is_named_and_a_stopped_runs_newest_checkpoint_is_owed(make: Make) -> None:
    run = make()
    made_up_update(run)
    account = proved(run)
    assert account.verdict == "unfinished"
    assert [(finding.rule, finding.where) for finding in account.findings] == [("versions are announced", "CURRENT")]
    stray = run.checkpoint(-1).name
    run.point_to(-2)
    account = proved(run)
    assert account.verdict == "sound"
    assert any(stray in sentence for sentence in account.unseen)
    assert any("whether settings.json was changed" in sentence for sentence in account.unseen)


def test_a_segment_that_a_killed_sink_left_unlisted_is_no_finding(make: Make) -> None:
    run = make()
    listed = run.segment("rewards")
    shutil.copy(listed, listed.with_name(f"{0:020d}-{0:020d}.parquet"))
    assert proved(run).verdict == "sound"


def test_every_finding_names_a_rule_that_is_documented() -> None:
    page = (Path(__file__).parents[2] / "infra" / "VERIFY.md").read_text()
    for name, rule in RULES.items():
        assert f"| {name} | {rule.proves} | {rule.modes} |" in page


def test_every_tampering_is_in_the_documented_table() -> None:
    from tests.tampering import TAMPERINGS

    page = (Path(__file__).parents[2] / "infra" / "VERIFY.md").read_text()
    rows = [f"| {each.name} | {each.said} | {', '.join(each.modes)} |" for each in TAMPERINGS]
    assert [row for row in rows if row not in page] == []


OWN = (
    "CREATE VIEW rewards_by_day AS SELECT max(reward) AS best FROM outcomes",
    "CREATE TABLE my_notes (group_id VARCHAR PRIMARY KEY, note VARCHAR)",
    "CREATE SCHEMA mine",
    "CREATE TABLE mine.rewards AS SELECT 1 AS reward",
    "CREATE MACRO mine.max(x) AS 0",
)


def test_tables_and_views_of_ones_own_beside_the_rows_are_told_and_change_no_verdict(make: Make) -> None:
    run = make()
    seal = proved(run).seal
    with duckdb.connect(str(run.folder / LEDGER)) as connection:
        for statement in OWN:
            connection.execute(statement)
    for how in ({}, {"kafka": True}, {"rebuild": True}):
        account = proved(run, **how)
        assert (account.verdict, account.seal, said(account)) == ("sound", seal, [])
        (told,) = [sentence for sentence in account.unseen if "not searchloop's" in sentence]
        assert "the view 'rewards_by_day'" in told and "the table 'my_notes'" in told
    with duckdb.connect(str(run.folder / LEDGER)) as connection:
        assert connection.execute("SELECT count(*) FROM rewards_by_day, mine.rewards").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE arriving (record_offset BIGINT)",  # A name by which a query finds rows in Python.
        "CREATE VIEW Taken AS SELECT 1 AS one",
        "CREATE MACRO max(x) AS 0",
        "CREATE MACRO my_own(x) AS 0",
        "CREATE TYPE mood AS ENUM ('good')",
        "CREATE INDEX mine ON outcomes (group_id)",
    ],
)
def test_what_could_answer_for_ours_is_a_finding_with_the_remedy(make: Make, statement: str) -> None:
    run = make()
    with duckdb.connect(str(run.folder / LEDGER)) as connection:
        connection.execute(statement)
    account = proved(run)
    (line,) = [line for line in said(account) if line.startswith("nothing shadows the ledger: ")]
    assert "is not one of searchloop's; remove it, or rebuild the ledger: searchloop rebuild" in line
    shown = verb(run).output
    assert "the ledger cannot be used" in shown and "a sink is running" not in shown


def test_a_sink_goes_on_beside_tables_and_views_of_ones_own(make: Make) -> None:
    run = make()
    with duckdb.connect(str(run.folder / LEDGER)) as connection:
        for statement in OWN:
            connection.execute(statement)
    store(run.folder, run.topics.all())
    assert proved(run).verdict == "sound"
