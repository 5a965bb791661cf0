-- page: rewards
-- order: 2
-- title: Spread within a group
-- draw: line
-- x: step
-- y: spread
-- smooth: 9
-- unit: reward
-- says: The standard deviation of the rewards within a group, on average. Without spread there is nothing to learn from. A long run's chart draws about 500 versions, evenly spaced.
-- link: /examples?step={step}
SELECT step, avg(reward_std) AS spread, count(*) AS groups FROM drawn_groups WHERE surviving
GROUP BY step ORDER BY step
