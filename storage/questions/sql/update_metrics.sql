-- page: learning
-- order: 1
-- title: Update metrics
-- draw: multiples
-- x: step
-- series: metric
-- y: value
-- smooth: 9
-- unit: value
-- says: What the learner measured in each update of the surviving lineage.
WITH entries AS (SELECT step, unnest(map_entries(metrics)) AS entry FROM surviving_updates)
SELECT step, entry.key AS metric, entry.value AS value FROM entries WHERE isfinite(entry.value) ORDER BY metric, step
