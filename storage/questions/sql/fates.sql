-- page: learning
-- order: 3
-- title: Groups by fate
-- draw: stack
-- x: step
-- series: fate
-- y: groups
-- unit: groups
-- says: What became of the groups that each update took: a gradient, none for want of spread, or none because they were too old, failed or rejected. A long run's chart draws about 500 updates, evenly spaced.
SELECT step, fate, count(DISTINCT group_id) AS groups
FROM (SELECT u.step, t.fate, t.group_id FROM drawn_updates u JOIN update_groups t USING (topic, partition, record_offset))
GROUP BY step, fate ORDER BY fate, step
