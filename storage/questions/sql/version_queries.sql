-- page: versions
-- order: 2
-- title: Queries that two versions both answered
-- draw: table
-- says: The mean reward of each query under both versions, the largest losses and gains first.
-- empty: No query has groups on both sides. Take more versions on each side. A run that asks no query twice has none: the held-out queries below, if they were measured, tell what the policy changed.
-- link: /examples?query={query_id}
WITH mine AS (
    SELECT query_id, any_value(query) AS query, avg(reward_mean) FILTER (step BETWEEN $from_low AND $from_high) AS before,
        avg(reward_mean) FILTER (step BETWEEN $to_low AND $to_high) AS after
    FROM group_rewards GROUP BY query_id
)
SELECT coalesce(nullif(query, ''), query_id) AS query, before, after, after - before AS change, query_id,
    count(*) OVER () AS in_all
FROM mine
WHERE before IS NOT NULL AND after IS NOT NULL ORDER BY abs(after - before) DESC, query_id LIMIT 200
