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
WITH kept AS (
    SELECT * FROM group_rewards WHERE ((run, lineage, step) IN (FROM surviving_versions) OR NOT EXISTS (FROM surviving_versions))
), binned AS (
    SELECT step // width * width AS step, sum(valid_share * scored) / nullif(sum(scored), 0) AS valid,
        avg(flat::INTEGER) AS flat
    FROM kept, (SELECT greatest(1, max(step) // 2000) AS width FROM kept) GROUP BY ALL
)
SELECT step, unnest(['valid', 'without spread']) AS what, unnest([valid, flat]) AS share FROM binned ORDER BY what, step
