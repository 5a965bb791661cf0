-- page: learning
-- order: 2
-- title: Staleness of the groups in an update
-- draw: line
-- x: step
-- y: mean
-- band: least, most
-- unit: versions
-- says: Versions between the policy that wrote a group and the one that learned from it: mean, and a band from least to most. The limit is batch.staleness_max.
SELECT step, avg(lag_versions) AS mean, min(lag_versions) AS least, max(lag_versions) AS most, count(*) AS groups
FROM staleness WHERE fate = 'trained' GROUP BY step ORDER BY step
