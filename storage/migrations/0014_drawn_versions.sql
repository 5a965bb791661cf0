-- The same views in less time, and views for charts: with a million groups of 60,000 versions, a chart took seconds.

-- Few groups stand twice in the log. Only those are sorted; the others are found by a hash that nothing else has. Two
-- groups of one hash are sorted, too, so the result is exact.
CREATE OR REPLACE VIEW first_generations AS
WITH mine AS (
    SELECT * FROM generations WHERE topic LIKE '%.generations'
), again AS MATERIALIZED (
    SELECT hash(run, group_id) AS name FROM mine GROUP BY name HAVING count(*) > 1
)
SELECT * FROM mine WHERE hash(run, group_id) NOT IN (FROM again)
UNION ALL
SELECT * FROM (
    SELECT * FROM mine WHERE hash(run, group_id) IN (FROM again)
    QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1);

CREATE OR REPLACE VIEW first_rewards AS
WITH mine AS (
    SELECT * FROM rewards WHERE topic LIKE '%.rewards'
), again AS MATERIALIZED (
    SELECT hash(run, group_id) AS name FROM mine GROUP BY name HAVING count(*) > 1
)
SELECT * FROM mine WHERE hash(run, group_id) NOT IN (FROM again)
UNION ALL
SELECT * FROM (
    SELECT * FROM mine WHERE hash(run, group_id) IN (FROM again)
    QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1);

-- A record's outcomes are summed by its place; names of groups and texts are not compared.
CREATE OR REPLACE VIEW group_rewards AS
SELECT r.run, r.group_id, r.query_id, r.query, r.split, r.lineage, r.step, s.candidates, s.scored, s.reward_mean,
    s.reward_std, s.reward_max, s.valid_share, s.expansions_mean, s.flat
FROM first_rewards r JOIN (
    SELECT topic, partition, record_offset, count(*) AS candidates, count(reward) AS scored,
        avg(reward) AS reward_mean, stddev_pop(reward) AS reward_std, max(reward) AS reward_max,
        avg(valid::INTEGER) FILTER (status = 'scored') AS valid_share,
        avg(len(expansions)) FILTER (status = 'scored') AS expansions_mean,
        count(reward) >= 2 AND max(reward) = min(reward) AS flat
    FROM outcomes GROUP BY topic, partition, record_offset
) s USING (topic, partition, record_offset);

-- Counted by group: a generation and a reward number their candidates alike, from 0 on. So a group has as many as the
-- longer of both, and those that only the generation has wait for an answer.
CREATE OR REPLACE VIEW accounting AS
WITH named AS (
    SELECT topic, partition, record_offset, run, group_id, fate FROM update_groups
    WHERE (topic, partition, record_offset) IN (SELECT (topic, partition, record_offset) FROM surviving_updates)
), again AS MATERIALIZED (
    SELECT hash(run, group_id) AS name FROM named GROUP BY name HAVING count(*) > 1
), fates AS (
    SELECT run, group_id, (fate = 'trained')::BIGINT AS uses, fate = 'expired' AS expired FROM named
    WHERE hash(run, group_id) NOT IN (FROM again)
    UNION ALL
    SELECT run, group_id, count(*) FILTER (fate = 'trained'), bool_or(fate = 'expired') FROM surviving_groups
    WHERE hash(run, group_id) IN (FROM again) GROUP BY run, group_id
), written AS (
    SELECT g.run, g.group_id, g.split, c.counted
    FROM first_generations g JOIN (
        SELECT topic, partition, record_offset, count(*) AS counted FROM candidates GROUP BY ALL
    ) c USING (topic, partition, record_offset)
), judged AS (
    SELECT r.run, r.group_id, r.split, o.counted, o.scored, o.failed
    FROM first_rewards r JOIN (
        SELECT topic, partition, record_offset, count(*) AS counted, count(*) FILTER (status = 'scored') AS scored,
            count(*) FILTER (status = 'failed') AS failed
        FROM outcomes GROUP BY ALL
    ) o USING (topic, partition, record_offset)
), groups AS (
    SELECT run, coalesce(j.split, w.split) AS split, greatest(coalesce(w.counted, 0), coalesce(j.counted, 0)) AS counted,
        coalesce(j.counted, 0) AS answered, coalesce(j.scored, 0) AS scored, coalesce(j.failed, 0) AS failed,
        coalesce(f.uses, 0) AS uses, coalesce(f.expired AND f.uses = 0, false) AS expired
    FROM written w FULL OUTER JOIN judged j USING (run, group_id) LEFT JOIN fates f USING (run, group_id)
)
SELECT run, split, sum(counted)::BIGINT AS candidates, coalesce(sum(scored) FILTER (NOT expired), 0)::BIGINT AS scored,
    coalesce(sum(failed) FILTER (NOT expired), 0)::BIGINT AS failed,
    coalesce(sum(counted) FILTER (expired), 0)::BIGINT AS expired,
    coalesce(sum(counted - answered) FILTER (NOT expired), 0)::BIGINT AS waiting, max(uses) AS uses_max
FROM groups GROUP BY run, split ORDER BY run, split;

-- Versions that charts draw: all of them up to 500, then every second, every third and so on, back from the newest.
-- surviving: whether the newest policy stands on the version. every: how many versions one drawn version stands for.
CREATE VIEW drawn_versions AS
WITH alive AS MATERIALIZED (FROM surviving_versions), versions AS (
    SELECT run, lineage, step, (run, lineage, step) IN (FROM alive) OR NOT EXISTS (FROM alive) AS surviving
    FROM (SELECT DISTINCT run, lineage, step FROM rewards WHERE topic LIKE '%.rewards')
), numbered AS (
    SELECT *, greatest(1, ceil(count(*) OVER (PARTITION BY run) / 500)::BIGINT) AS every,
        row_number() OVER (PARTITION BY run, surviving ORDER BY step DESC, lineage) AS place
    FROM versions
)
SELECT run, lineage, step, surviving, every FROM numbered WHERE (place - 1) % every = 0;

CREATE VIEW drawn_rewards AS
SELECT r.*, d.surviving FROM rewards r JOIN drawn_versions d USING (run, lineage, step) WHERE topic LIKE '%.rewards'
QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1;

CREATE VIEW drawn_outcomes AS
SELECT o.*, r.query_id, r.query, r.split, r.lineage, r.step, r.surviving, r.source_topic, r.source_partition,
    r.source_offset
FROM outcomes o JOIN drawn_rewards r USING (topic, partition, record_offset);

CREATE VIEW drawn_candidates AS
SELECT c.*, g.lineage, g.step, g.surviving FROM candidates c JOIN (
    SELECT g.*, d.surviving FROM generations g JOIN drawn_versions d USING (run, lineage, step)
    WHERE topic LIKE '%.generations'
    QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1
) g USING (topic, partition, record_offset);

CREATE VIEW drawn_groups AS
SELECT run, group_id, any_value(lineage) AS lineage, any_value(step) AS step, any_value(surviving) AS surviving,
    count(*) AS candidates, count(reward) AS scored, avg(reward) AS reward_mean, stddev_pop(reward) AS reward_std,
    avg(valid::INTEGER) FILTER (status = 'scored') AS valid_share,
    count(reward) >= 2 AND max(reward) = min(reward) AS flat
FROM drawn_outcomes GROUP BY run, group_id;

-- Updates that charts draw, each with the time of the one before it on the chain.
CREATE VIEW drawn_updates AS
WITH numbered AS (
    SELECT *, lag(record_time_ms) OVER (PARTITION BY run ORDER BY step, lineage) AS before_ms,
        greatest(1, ceil(count(*) OVER (PARTITION BY run) / 500)::BIGINT) AS every,
        row_number() OVER (PARTITION BY run ORDER BY step DESC, lineage) AS place
    FROM surviving_updates
)
SELECT * FROM numbered WHERE (place - 1) % every = 0;
