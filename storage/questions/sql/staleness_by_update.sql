-- page: learning
-- order: 2
-- title: Staleness of the groups in an update
-- draw: line
-- x: step
-- y: mean
-- band: least, most
-- unit: versions
-- says: Versions between the policy that wrote a group and the one that learned from it: mean, and a band from least to most. The limit is batch.staleness_max. A long run's chart draws about 500 updates, evenly spaced.
WITH taken AS (
    SELECT DISTINCT u.run, u.step, u.parent_step, t.group_id
    FROM drawn_updates u JOIN update_groups t USING (topic, partition, record_offset) WHERE t.fate = 'trained'
)
SELECT t.step, avg(t.parent_step - r.step) AS mean, min(t.parent_step - r.step) AS least,
    max(t.parent_step - r.step) AS most, count(*) AS groups
FROM taken t JOIN first_rewards r USING (run, group_id) GROUP BY t.step ORDER BY t.step
