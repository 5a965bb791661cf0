-- page: rewards
-- order: 2
-- title: Spread within a group
-- draw: line
-- x: step
-- y: spread
-- smooth: 9
-- unit: reward
-- says: The standard deviation of the rewards within a group, on average. Without spread there is nothing to learn from.
-- link: /examples?step={step}
SELECT step, avg(reward_std) AS spread, count(*) AS groups FROM group_rewards
WHERE ((run, lineage, step) IN (FROM surviving_versions) OR NOT EXISTS (FROM surviving_versions))
GROUP BY step ORDER BY step
