-- page: live
-- order: 1
-- title: What people did, by version
-- draw: table
-- says: Final outcomes of people alone (no bots): searches, searches with a click, and clicks. The chart of versions above has the intervals.
SELECT coalesce(nullif(policy, ''), 'raw') AS version, count(*) AS searches,
    count(*) FILTER (len(actions) > 0) AS with_action, round(avg((len(actions) > 0)::INTEGER), 4) AS click_rate,
    round(avg(action_propensity), 4) AS mean_propensity, min(action_propensity) AS least_propensity
FROM trusted_outcomes GROUP BY version ORDER BY searches DESC, version
