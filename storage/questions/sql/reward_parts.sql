-- page: rewards
-- order: 9
-- title: Parts of the reward
-- draw: multiples
-- x: step
-- series: part
-- y: value
-- smooth: 9
-- unit: value
-- says: The mean of each part of the reward by version. A size that grows while relevance does not is how a policy cheats. A long run's chart draws about 500 versions, evenly spaced.
WITH parts AS (
    SELECT step, unnest(map_entries(components)) AS part FROM drawn_outcomes WHERE status = 'scored' AND surviving
)
SELECT step, part.key AS part, avg(part.value) AS value
FROM parts WHERE isfinite(part.value) GROUP BY ALL ORDER BY part, step
