-- page: learning
-- order: 3
-- title: Groups by fate
-- draw: stack
-- x: step
-- series: fate
-- y: groups
-- unit: groups
-- says: What became of the groups that each update took: a gradient, none for want of spread, or none because they were too old, failed or rejected.
SELECT step, fate, count(*) AS groups FROM surviving_groups GROUP BY step, fate ORDER BY fate, step
