-- page: overview
-- order: 1
-- title: Search quality on dev queries
-- draw: lines
-- series: line
-- x: step
-- y: value
-- unit: measure
-- says: How well each policy version serves judged dev queries that train nothing. This is the result; the reward below is only the means. What a learner had done and lost is a line of its own.
-- empty: No dev queries are measured in this run. A recipe with `dev.every` above 0 measures them as it learns; `searchloop measure` measures versions afterwards.
-- link: /versions?to={step}
WITH alive AS (FROM surviving_versions), drawn AS (
    SELECT step, value, measure, lineage, measure || CASE WHEN (run, lineage, step) IN (FROM alive)
        OR NOT EXISTS (FROM alive) THEN '' ELSE ', left behind: ' || lineage END AS line
    FROM first_dev_scores
)
SELECT step, value, measure, lineage, line FROM drawn ORDER BY line, step, lineage
