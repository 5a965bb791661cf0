-- page: live
-- order: 8
-- title: Newest searches
-- draw: table
-- says: The newest final outcomes with the version that answered, the probability of that choice, and what people did. A client's name in the table above shows its searches alone.
SELECT make_timestamp(greatest(least(at_ms, 4102444800000), 0) * 1000) AS at, query, coalesce(nullif(policy, ''), 'raw') AS version,
    action_propensity AS propensity, len(shown) AS results, len(actions) AS actions, coalesce(bot, '') AS bot, client,
    impression_id,
    count(*) OVER () AS in_all
FROM final_outcomes WHERE coalesce(bot, '') <> 'judged' AND ($client = '' OR client = $client) ORDER BY at_ms DESC, impression_id LIMIT 200
