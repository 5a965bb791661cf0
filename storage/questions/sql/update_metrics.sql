-- page: learning
-- order: 1
-- title: Update metrics
-- draw: multiples
-- x: step
-- series: metric
-- y: value
-- smooth: 9
-- unit: value
-- says: What the learner measured in each update of the surviving lineage; on a long run, means of some updates each.
WITH entries AS (SELECT step, unnest(map_entries(metrics)) AS entry FROM surviving_updates)
SELECT step // width * width AS step, entry.key AS metric, avg(entry.value) AS value
FROM entries, (SELECT greatest(1, max(step) // 300) AS width FROM surviving_updates)
WHERE isfinite(entry.value) GROUP BY ALL ORDER BY metric, step
