-- Which learner announced a version, where machines share a run: its epoch and its name. NULL in rows of runs on one
-- machine, of older writers, and of ledgers that are older than this migration.
ALTER TABLE policy_versions ADD COLUMN epoch BIGINT;
ALTER TABLE policy_versions ADD COLUMN holder VARCHAR;

-- Announcements that count, as `streams.epochs` says it: from the first one of an epoch on, none of a lower epoch, and
-- none of another holder of the same epoch. A learner that has lost its right without knowing it may still write.
CREATE VIEW counted_versions AS
WITH mine AS (
    SELECT * FROM policy_versions WHERE topic LIKE '%.policy-versions'
), shared AS MATERIALIZED (
    SELECT DISTINCT run FROM policy_versions WHERE epoch > 0
)
SELECT * FROM mine WHERE run NOT IN (FROM shared) AND coalesce(epoch, 0) = 0 AND coalesce(holder, '') = ''
UNION ALL
SELECT * FROM (
    SELECT * FROM mine WHERE run IN (FROM shared)
    WINDOW log AS (PARTITION BY run ORDER BY partition, record_offset ROWS UNBOUNDED PRECEDING)
    QUALIFY coalesce(epoch, 0) = greatest(0, max(epoch) OVER log) AND coalesce(holder, '') = CASE
        WHEN coalesce(epoch, 0) = 0 THEN ''
        ELSE coalesce(first_value(holder) OVER (PARTITION BY run, epoch ORDER BY partition, record_offset), '') END);

-- Updates without those that a learner announced after it had lost its right. An update whose version nobody has
-- announced is here: its announcement may still come.
CREATE VIEW counted_updates AS
WITH fenced AS (
    SELECT run, lineage, step, weights_sha256 FROM policy_versions
    WHERE status = 'published' AND run IN (SELECT run FROM policy_versions WHERE epoch > 0)
    EXCEPT SELECT run, lineage, step, weights_sha256 FROM counted_versions WHERE status = 'published'
)
SELECT * FROM updates WHERE topic NOT LIKE '%.updates' OR (run, lineage, step, weights_sha256) NOT IN (FROM fenced);

-- Where machines share a run, the update that gave its newest version is that of the last announcement that counts: a
-- learner without its right writes updates, too. None if nobody made that version.
CREATE VIEW shared_newest_updates AS
WITH once AS (
    SELECT run, lineage, step, weights_sha256, topic, partition, record_offset FROM updates
    WHERE run IN (SELECT run FROM policy_versions WHERE epoch > 0)
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1
), said AS (
    SELECT v.run, u.topic, u.partition, u.record_offset
    FROM counted_versions v LEFT JOIN once u USING (run, lineage, step, weights_sha256)
    WHERE v.status = 'published' AND v.run IN (SELECT run FROM policy_versions WHERE epoch > 0)
        AND (u.record_offset IS NOT NULL OR v.parent_lineage IS NULL)
    QUALIFY row_number() OVER (PARTITION BY v.run ORDER BY v.partition DESC, v.record_offset DESC) = 1
)
SELECT * FROM said WHERE record_offset IS NOT NULL;

-- The update that gave the newest version, of every run that has one: elsewhere, it is the newest one in the log.
CREATE VIEW newest_updates AS
FROM shared_newest_updates
UNION ALL
SELECT * FROM (
    SELECT run, topic, partition, record_offset FROM updates
    WHERE run NOT IN (SELECT run FROM policy_versions WHERE epoch > 0)
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1)
QUALIFY row_number() OVER (PARTITION BY run ORDER BY record_offset DESC) = 1;

-- The chain of updates as before; it begins with that newest update.
CREATE OR REPLACE VIEW surviving_updates AS
WITH RECURSIVE once AS (
    SELECT * FROM updates
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1
), placed AS (
    SELECT run, lineage, step, weights_sha256, parent_lineage, parent_step, parent_sha256, topic, partition,
        record_offset, sum(CASE WHEN follows THEN 0 ELSE 1 END) OVER (
            PARTITION BY run ORDER BY record_offset, topic, partition ROWS UNBOUNDED PRECEDING) AS island
    FROM (
        SELECT *, parent_lineage = lag(lineage) OVER log AND parent_step = lag(step) OVER log
            AND parent_sha256 = lag(weights_sha256) OVER log AND record_offset > lag(record_offset) OVER log AS follows
        FROM once WINDOW log AS (PARTITION BY run ORDER BY record_offset, topic, partition)
    )
), heads AS (
    SELECT * FROM placed
    QUALIFY row_number() OVER (PARTITION BY run, island ORDER BY record_offset, topic, partition) = 1
), begun AS (
    SELECT * FROM (
        SELECT run, island, record_offset AS newest FROM placed
        WHERE run NOT IN (SELECT run FROM policy_versions WHERE epoch > 0)
        QUALIFY row_number() OVER (PARTITION BY run ORDER BY record_offset DESC) = 1)
    UNION ALL
    SELECT p.run, p.island, p.record_offset
    FROM placed p JOIN shared_newest_updates USING (topic, partition, record_offset)
), chain AS (
    FROM begun
    UNION ALL
    SELECT p.run, p.island, p.record_offset FROM chain c JOIN heads h ON h.run = c.run AND h.island = c.island
    JOIN placed p ON p.run = h.run AND p.lineage = h.parent_lineage AND p.step = h.parent_step
        AND p.weights_sha256 = h.parent_sha256 AND p.record_offset < h.record_offset
)
SELECT once.* FROM once
JOIN placed p USING (topic, partition, record_offset)
JOIN chain c ON c.run = p.run AND c.island = p.island AND p.record_offset <= c.newest;

-- Every version announced, with its parent and its newest status; an announcement that does not count changes neither.
CREATE OR REPLACE VIEW version_lineage AS
SELECT
    run, lineage, step, weights_sha256, parent_lineage, parent_step, parent_sha256, path, status, requests_consumed,
    epoch_ms(greatest(least(made_at_ms, 4102444800000), 0)) AS made_at
FROM counted_versions
QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset DESC) = 1;
