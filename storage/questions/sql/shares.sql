-- page: rewards
-- order: 4
-- title: Valid texts, and groups without spread
-- draw: lines
-- x: step
-- series: what
-- y: share
-- smooth: 9
-- unit: share
-- says: The share of texts in the right format, and of groups whose rewards are all equal, which give no gradient.
-- link: /examples?step={step}&sort=flat
SELECT step, unnest(['valid', 'without spread']) AS what,
    unnest([sum(valid_share * scored) / nullif(sum(scored), 0), avg(flat::INTEGER)]) AS share
FROM group_rewards GROUP BY step ORDER BY what, step
