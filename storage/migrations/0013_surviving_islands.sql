-- The chain of updates once more, the same rows in few steps: update by update, 60,000 updates took half a minute.
-- In the order of the log an update mostly stands on the one just before it. Updates that do so in a row are an island.
-- The chain goes from an island's first update to the island of its parent, so it takes one step for each time that a
-- learner went back.
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
), chain AS (
    SELECT * FROM (
        SELECT run, island, record_offset AS newest FROM placed
        QUALIFY row_number() OVER (PARTITION BY run ORDER BY record_offset DESC) = 1)
    UNION ALL
    SELECT p.run, p.island, p.record_offset FROM chain c JOIN heads h ON h.run = c.run AND h.island = c.island
    JOIN placed p ON p.run = h.run AND p.lineage = h.parent_lineage AND p.step = h.parent_step
        AND p.weights_sha256 = h.parent_sha256 AND p.record_offset < h.record_offset
)
SELECT once.* FROM once
JOIN placed p USING (topic, partition, record_offset)
JOIN chain c ON c.run = p.run AND c.island = p.island AND p.record_offset <= c.newest;

-- Versions on the chain: those that its updates gave, and the one with which it began. Empty without updates.
CREATE VIEW surviving_versions AS
SELECT run, lineage, step FROM surviving_updates UNION SELECT run, parent_lineage, parent_step FROM surviving_updates;
