-- What people ask. A group's first record in the log is the one that counts: the lowest source offset, then the lowest
-- offset of its own. Names are in the singular or say what they show; the tables below them keep every record.

CREATE VIEW first_generations AS
SELECT * FROM generations
QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1;

CREATE VIEW first_rewards AS
SELECT * FROM rewards
QUALIFY row_number() OVER (PARTITION BY run, group_id ORDER BY source_offset, record_offset) = 1;

CREATE VIEW first_candidates AS
SELECT c.* FROM candidates c
JOIN first_generations g USING (topic, partition, record_offset);

CREATE VIEW first_outcomes AS
SELECT o.*, r.query_id, r.query, r.split, r.lineage, r.step FROM outcomes o
JOIN first_rewards r USING (topic, partition, record_offset);

-- The chain of updates that the newest one stands on; what a killed learner had done beyond its checkpoint is not in it.
-- An update is found by the weights that it gave: lineage, step and hash together.
CREATE VIEW surviving_updates AS
WITH RECURSIVE once AS (
    SELECT * FROM updates
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1
), chain AS (
    SELECT * FROM (SELECT * FROM once QUALIFY row_number() OVER (PARTITION BY run ORDER BY record_offset DESC) = 1)
    UNION ALL
    SELECT u.* FROM chain c JOIN once u
        ON u.run = c.run AND u.lineage = c.parent_lineage AND u.step = c.parent_step
        AND u.weights_sha256 = c.parent_sha256 AND u.record_offset < c.record_offset
)
SELECT * FROM chain;

CREATE VIEW surviving_groups AS
SELECT DISTINCT ON (g.run, g.group_id, g.lineage, g.step, g.fate) g.* FROM update_groups g
JOIN surviving_updates USING (topic, partition, record_offset);

-- One row per candidate, asked for or judged. outcome: scored, failed, expired, or 'waiting' while there is none yet.
-- uses: how often the surviving lineage took a gradient from its group; more than one breaks the contract.
CREATE VIEW candidate_outcomes AS
WITH fates AS (
    SELECT run, group_id, count(*) FILTER (fate = 'trained') AS uses, bool_or(fate = 'expired') AS expired,
        bool_or(fate = 'flat') AS flat
    FROM surviving_groups GROUP BY run, group_id
)
SELECT
    run, group_id, candidate, coalesce(o.query_id, g.query_id) AS query_id, coalesce(o.query, g.query) AS query,
    coalesce(o.split, g.split) AS split, coalesce(o.lineage, g.lineage) AS lineage, coalesce(o.step, g.step) AS step,
    CASE WHEN f.expired THEN 'expired' ELSE coalesce(o.status, 'waiting') END AS outcome,
    o.valid, o.reward, o.components, o.expansions, o.hits, o.error, coalesce(o.text, c.text) AS text,
    coalesce(f.uses, 0) AS uses, coalesce(f.flat, false) AS flat
FROM first_candidates c
FULL OUTER JOIN first_outcomes o USING (run, group_id, candidate)
LEFT JOIN first_generations g USING (run, group_id)
LEFT JOIN fates f USING (run, group_id);

-- One row per group: its rewards' mean and spread, and whether they were all equal.
CREATE VIEW group_rewards AS
SELECT
    run, group_id, any_value(query_id) AS query_id, any_value(query) AS query, any_value(split) AS split,
    any_value(lineage) AS lineage, any_value(step) AS step, count(*) AS candidates, count(reward) AS scored,
    avg(reward) AS reward_mean, stddev_pop(reward) AS reward_std, max(reward) AS reward_max,
    avg(valid::INTEGER) FILTER (status = 'scored') AS valid_share,
    avg(len(expansions)) FILTER (status = 'scored') AS expansions_mean,
    count(reward) >= 2 AND max(reward) = min(reward) AS flat
FROM first_outcomes GROUP BY run, group_id;

-- The reward curve: one row per policy version that wrote groups, in the order of steps.
CREATE VIEW reward_by_version AS
SELECT
    run, lineage, step, count(*) AS groups, sum(scored)::BIGINT AS scored, sum(candidates - scored)::BIGINT AS failed,
    avg(reward_mean) AS reward_mean, stddev_samp(reward_mean) / sqrt(count(reward_mean)) AS reward_error,
    avg(reward_max) AS reward_best, sum(valid_share * scored) / nullif(sum(scored), 0) AS valid_share,
    avg(flat::INTEGER) AS flat_share, avg(expansions_mean) AS expansions_mean
FROM group_rewards GROUP BY run, lineage, step ORDER BY run, step, lineage;

-- How many steps lay between the policy that wrote a group and the one that learned from it.
CREATE VIEW staleness AS
SELECT s.run, s.lineage, s.step, s.group_id, s.fate, s.parent_step - r.step AS lag_versions
FROM surviving_groups s JOIN first_rewards r USING (run, group_id);

-- Every version announced, with its parent and its newest status.
CREATE VIEW version_lineage AS
SELECT
    run, lineage, step, weights_sha256, parent_lineage, parent_step, parent_sha256, path, status, requests_consumed,
    epoch_ms(made_at_ms) AS made_at
FROM policy_versions
QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset DESC) = 1;

CREATE VIEW dead_letter AS
SELECT * FROM dead_letters
QUALIFY row_number() OVER (
    PARTITION BY source_topic, source_partition, source_offset, stage ORDER BY topic = source_topic DESC, record_offset
) = 1;

-- Requested = answered + waiting, per run and split.
CREATE VIEW accounting AS
SELECT run, split, count(*) AS candidates, count(*) FILTER (outcome = 'scored') AS scored,
    count(*) FILTER (outcome = 'failed') AS failed, count(*) FILTER (outcome = 'expired') AS expired,
    count(*) FILTER (outcome = 'waiting') AS waiting, max(uses) AS uses_max
FROM candidate_outcomes GROUP BY run, split ORDER BY run, split;
