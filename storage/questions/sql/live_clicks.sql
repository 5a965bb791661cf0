-- page: live
-- order: 2
-- title: Searches with a click, by hour
-- draw: lines
-- x: hour
-- series: version
-- y: share
-- unit: share
-- says: The share of searches that led to an action, by version and hour.
SELECT at_ms // 3600000 * 3600 AS hour, coalesce(nullif(policy, ''), 'raw') AS version,
    avg((len(actions) > 0)::INTEGER) AS share, count(*) AS searches
FROM trusted_outcomes GROUP BY hour, version ORDER BY version, hour
