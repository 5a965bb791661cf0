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
    SELECT step, unnest(map_entries(components)) AS part FROM first_outcomes
    WHERE status = 'scored' AND ((run, lineage, step) IN (FROM surviving_versions) OR NOT EXISTS (FROM surviving_versions))
)
SELECT step // width * width AS step, part.key AS part, avg(part.value) AS value
FROM parts, (SELECT greatest(1, max(step) // 500) AS width FROM parts)
WHERE isfinite(part.value) GROUP BY ALL ORDER BY part, step
