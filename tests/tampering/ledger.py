"""What somebody does to the ledger's rows alone, or to ledger and archive topic by topic."""

from __future__ import annotations

from tests.tampering.kinds import GROUP, files, rows

PLACE = "topic = 'test.rewards' AND record_offset = 5"

LEDGER_TAMPERINGS = (
    # The ledger's rows.
    rows("a request's row deleted", "one row a record", "DELETE FROM requests WHERE record_offset = 5"),
    rows("a reward's row twice", "one row a record", f"INSERT INTO rewards FROM rewards WHERE {PLACE}"),
    rows("an outcome deleted", "one outcome a candidate", f"DELETE FROM outcomes WHERE {PLACE} AND candidate = 3"),
    rows(
        "an outcome twice",
        "one outcome a candidate",
        f"INSERT INTO outcomes FROM outcomes WHERE {PLACE} AND candidate = 3",
    ),
    rows(
        "a scored candidate without a reward",
        "terminal outcomes",
        f"UPDATE outcomes SET reward = NULL WHERE {PLACE} AND candidate = 3",
    ),
    rows(
        "a candidate deleted", "one row a candidate", "DELETE FROM candidates WHERE record_offset = 5 AND candidate = 3"
    ),
    rows(
        "a reward's value changed",
        "rebuilt from the log",
        f"UPDATE outcomes SET reward = reward + 1e-9 WHERE {PLACE} AND candidate = 3",
    ),
    rows(
        "a metric changed",
        "rebuilt from the log",
        "UPDATE updates SET metrics = map_concat(metrics, MAP {'loss': 9.0::DOUBLE}) WHERE step = 2",
    ),
    rows(
        "a trained group counted as flat",
        "fates follow from the log",
        f"UPDATE update_groups SET fate = 'flat' WHERE group_id = '{GROUP}'",
    ),
    rows(
        "every trained group counted as failed",
        "fates follow from the log",
        "UPDATE update_groups SET fate = 'failed' WHERE fate = 'trained'",
    ),
    rows(
        "a group taken twice",
        "at most one gradient",
        f"INSERT INTO update_groups FROM update_groups WHERE group_id = '{GROUP}'",
    ),
    rows("every fate deleted", "every group taken", "DELETE FROM update_groups"),
    rows("an update deleted", "lineage", "DELETE FROM updates WHERE step = 2"),
    rows(
        "positions set back and fates deleted",
        "positions only grow",
        "UPDATE updates SET positions = MAP {0: 1} WHERE step = 5",
        "DELETE FROM update_groups WHERE step = 5",
    ),
    rows(
        "a group's id made up",
        "ids are functions of the log",
        *(
            f"UPDATE {table} SET group_id = 'made up' WHERE group_id = '{GROUP}'"
            for table in ("generations", "candidates", "rewards", "outcomes", "update_groups")
        ),
    ),
    rows(
        "records counted wrongly",
        "offsets",
        "UPDATE sink_offsets SET records = records - 1 WHERE topic = 'test.rewards'",
    ),
    rows(
        "every trained group of split test",
        "only train trains",
        *(f"UPDATE {table} SET split = 'test'" for table in ("requests", "generations", "rewards")),
    ),
    rows(
        "a reward answers another generation",
        "rewards answer generations",
        f"UPDATE rewards SET source_offset = 7 WHERE {PLACE}",
    ),
    rows(
        "a reward for another text",
        "embedded is what was written",
        f"UPDATE outcomes SET text = 'other' WHERE {PLACE} AND candidate = 3",
    ),
    rows(
        "a version's weights renamed",
        "versions are announced",
        f"UPDATE generations SET weights_sha256 = '{'0' * 64}' WHERE step = 1",
    ),
    rows(
        "a group written by a later version",
        "fates follow from the log",
        "UPDATE rewards SET step = 4 WHERE step = 1",
        "UPDATE generations SET step = 4 WHERE step = 1",
    ),
    rows("a reason deleted", "reasons are given", "UPDATE update_groups SET reason = NULL WHERE fate = 'rejected'"),
    rows(
        "the sink's position set back",
        "offsets",
        "UPDATE sink_offsets SET next_offset = 3 WHERE topic = 'test.requests'",
    ),
    # What the proof asks with: views, macros, types.
    rows(
        "a view that hides nothing but repetitions",
        "nothing shadows the ledger",
        "CREATE OR REPLACE VIEW first_outcomes AS FROM outcomes",
    ),
    rows("a macro in place of isfinite", "nothing shadows the ledger", "CREATE MACRO isfinite(x) AS true"),
    rows("a macro in place of max", "nothing shadows the ledger", "CREATE MACRO max(x) AS 0"),
    rows(
        "a macro in place of the catalogue",
        "nothing shadows the ledger",
        "CREATE MACRO duckdb_functions() AS TABLE SELECT 1 AS a LIMIT 0",
    ),
    rows(
        "the list of segments is a view",
        "nothing shadows the ledger",
        "ALTER TABLE archive_segments RENAME TO listed",
        "CREATE VIEW archive_segments AS FROM listed",
    ),
    rows("a table that nobody asked for", "nothing shadows the ledger", "CREATE TABLE arriving (record_offset BIGINT)"),
    rows(
        "a position that is text",
        "nothing shadows the ledger",
        "ALTER TABLE sink_offsets ALTER next_offset TYPE VARCHAR",
    ),
    rows(
        "a position that is nothing",
        "nothing shadows the ledger",
        "ALTER TABLE sink_offsets ALTER next_offset DROP NOT NULL",
        "UPDATE sink_offsets SET next_offset = NULL WHERE topic = 'test.rewards'",
    ),
    rows(
        "a segment without a path",
        "nothing shadows the ledger",
        "ALTER TABLE archive_segments ALTER path DROP NOT NULL",
        "UPDATE archive_segments SET path = NULL",
    ),
    rows("a migration of another text", "nothing shadows the ledger", "UPDATE schema_migrations SET sha256 = 'x'"),
    rows(
        "a migration that is to come",
        "nothing shadows the ledger",
        "INSERT INTO schema_migrations VALUES (99, 'x', 'y', 1)",
    ),
    rows("a segment's path with a NUL", "archive", "UPDATE archive_segments SET path = 'a' || chr(0) || 'b'"),
    # Whole topics wiped from ledger and archive.
    files("ledger and archive: every request wiped", "sources are in the log", lambda run: run.wipe("requests")),
    files(
        "ledger and archive: every policy version wiped",
        "versions are announced",
        lambda run: run.wipe("policy-versions"),
    ),
    files("ledger and archive: every update wiped", "lineage", lambda run: run.wipe("updates")),
    files("ledger and archive: every reward wiped", "gradients come from rewards", lambda run: run.wipe("rewards")),
)
