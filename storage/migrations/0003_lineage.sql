-- Which events made a policy version, and which versions an event taught; and two views made stricter.

-- A group's first record is looked for in its own topic alone: a reward that somebody wrote into another topic is buried
-- by the workers, so it must not count here either.
CREATE OR REPLACE VIEW first_generations AS
SELECT * FROM generations WHERE topic LIKE '%.generations'
QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1;

CREATE OR REPLACE VIEW first_rewards AS
SELECT * FROM rewards WHERE topic LIKE '%.rewards'
QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1;

-- A group that gave a gradient has not expired, even if a late repetition of its record was put aside as too old.
CREATE OR REPLACE VIEW candidate_outcomes AS
WITH fates AS (
    SELECT run, group_id, count(*) FILTER (fate = 'trained') AS uses, bool_or(fate = 'expired') AS expired,
        bool_or(fate = 'flat') AS flat
    FROM surviving_groups GROUP BY run, group_id
)
SELECT
    run, group_id, candidate, coalesce(o.query_id, g.query_id) AS query_id, coalesce(o.query, g.query) AS query,
    coalesce(o.split, g.split) AS split, coalesce(o.lineage, g.lineage) AS lineage, coalesce(o.step, g.step) AS step,
    CASE WHEN f.expired AND coalesce(f.uses, 0) = 0 THEN 'expired' ELSE coalesce(o.status, 'waiting') END AS outcome,
    o.valid, o.reward, o.components, o.expansions, o.hits, o.error, coalesce(o.text, c.text) AS text,
    coalesce(f.uses, 0) AS uses, coalesce(f.flat, false) AS flat
FROM first_candidates c
FULL OUTER JOIN first_outcomes o USING (run, group_id, candidate)
LEFT JOIN first_generations g USING (run, group_id)
LEFT JOIN fates f USING (run, group_id);

-- Every group that an update took, each once however often the update was announced, with its three records. surviving:
-- whether the newest policy stands on that update; what a killed learner had done beyond its checkpoint does not.
CREATE VIEW group_lineage AS
WITH once AS (
    SELECT * FROM updates
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1
)
SELECT
    u.run, u.lineage, u.step, u.weights_sha256, s.record_offset IS NOT NULL AS surviving, t.fate, t.group_id,
    u.topic AS update_topic, u.partition AS update_partition, u.record_offset AS update_offset,
    r.topic AS reward_topic, r.partition AS reward_partition, r.record_offset AS reward_offset,
    r.source_topic AS generation_topic, r.source_partition AS generation_partition,
    r.source_offset AS generation_offset, g.source_topic AS request_topic, g.source_partition AS request_partition,
    g.source_offset AS request_offset, r.request_id, r.query_id, r.query, r.lineage AS written_by_lineage,
    r.step AS written_by_step
FROM once u
JOIN update_groups t USING (topic, partition, record_offset)
LEFT JOIN surviving_updates s USING (topic, partition, record_offset)
LEFT JOIN first_rewards r ON r.run = u.run AND r.group_id = t.group_id
LEFT JOIN first_generations g ON g.run = u.run AND g.group_id = t.group_id;

-- Which events made policy version N: the update that gave it, and request, generation and reward of each group that
-- gave this update a gradient. What its parents were made of stands under their own names.
CREATE VIEW version_events AS
WITH trained AS (SELECT * FROM group_lineage WHERE fate = 'trained')
SELECT run, lineage, step, 'update' AS event, NULL AS group_id, topic, partition, record_offset
FROM (SELECT * FROM updates
      QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1)
UNION ALL
SELECT run, lineage, step, 'request', group_id, request_topic, request_partition, request_offset FROM trained
UNION ALL
SELECT run, lineage, step, 'generation', group_id, generation_topic, generation_partition, generation_offset
FROM trained
UNION ALL
SELECT run, lineage, step, 'reward', group_id, reward_topic, reward_partition, reward_offset FROM trained;

-- Which versions did an event teach: one row per request, generation or reward record and version that took a gradient
-- from it. Every version after a surviving one stands on it too.
CREATE VIEW event_versions AS
SELECT e.run, e.event, e.topic, e.partition, e.record_offset, e.group_id, l.request_id, e.lineage, e.step, l.surviving
FROM version_events e
JOIN group_lineage l ON l.run = e.run AND l.group_id = e.group_id AND l.lineage = e.lineage AND l.step = e.step
WHERE e.event <> 'update';
