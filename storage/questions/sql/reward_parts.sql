-- page: rewards
-- order: 9
-- title: Parts of the reward
-- draw: multiples
-- x: step
-- series: part
-- y: value
-- smooth: 9
-- unit: value
-- says: The mean of each part of the reward by version. A size that grows while relevance does not is how a policy cheats.
WITH parts AS (
    SELECT step, unnest(map_entries(components)) AS part FROM first_outcomes WHERE status = 'scored'
)
SELECT step, part.key AS part, avg(part.value) AS value FROM parts WHERE isfinite(part.value)
GROUP BY step, part.key ORDER BY part.key, step
