-- page: rewards
-- order: 5
-- title: Length of the texts
-- draw: line
-- x: step
-- y: tokens
-- smooth: 9
-- unit: tokens
-- says: The mean number of tokens of a candidate by version.
SELECT g.step, avg(c.tokens) AS tokens, count(*) AS candidates
FROM first_candidates c JOIN first_generations g USING (run, group_id) WHERE ((run, g.lineage, g.step) IN (FROM surviving_versions) OR NOT EXISTS (FROM surviving_versions))
GROUP BY g.step ORDER BY g.step
