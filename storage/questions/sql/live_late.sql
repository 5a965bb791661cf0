-- page: live
-- order: 5
-- title: Outcomes by day
-- draw: table
-- says: Impressions, their final outcomes, bots among them, and actions by day.
WITH days AS (
    SELECT date_trunc('day', make_timestamp(greatest(least(at_ms, 4102444800000), 0) * 1000)) AS day, count(*) AS final,
        count(*) FILTER (coalesce(bot, '') <> '') AS bots, sum(len(actions)) AS actions
    FROM final_outcomes WHERE coalesce(bot, '') <> 'judged' GROUP BY day
), seen AS (SELECT date_trunc('day', make_timestamp(greatest(least(at_ms, 4102444800000), 0) * 1000)) AS day, count(*) AS impressions FROM first_impressions
    WHERE coalesce(application, '') <> 'searchloop-judging' GROUP BY day
)
SELECT day, impressions, final, bots, actions, count(*) OVER () AS in_all FROM seen FULL JOIN days USING (day) ORDER BY day DESC LIMIT 60
