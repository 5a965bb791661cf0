-- page: rewards
-- order: 4
-- title: Valid texts, and groups without spread
-- draw: lines
-- x: step
-- series: what
-- y: share
-- smooth: 9
-- unit: share
-- says: The share of texts in the right format, and of groups whose rewards are all equal, which give no gradient. A long run's chart draws about 500 versions, evenly spaced.
-- link: /examples?step={step}&sort=flat
WITH shares AS (
    SELECT step, sum(valid_share * scored) / nullif(sum(scored), 0) AS valid, avg(flat::INTEGER) AS flat
    FROM drawn_groups WHERE surviving GROUP BY step
)
SELECT step, unnest(['valid', 'without spread']) AS what, unnest([valid, flat]) AS share FROM shares ORDER BY what, step
