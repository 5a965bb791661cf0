-- page: examples
-- order: 1
-- title: Groups
-- draw: table
-- says: One row for each group of candidates. Open one to read its texts and results.
-- link: /example?group={group_id}
SELECT coalesce(nullif(g.query, ''), g.query_id) AS query, g.step, g.candidates, g.scored,
    round(g.reward_mean, 4) AS reward, round(g.reward_std, 4) AS spread, round(g.reward_max, 4) AS best, g.flat,
    g.valid_share AS valid,
    g.group_id, count(*) OVER () AS in_all
FROM group_rewards g
WHERE ($step < 0 OR g.step = $step)
    AND ($query = '' OR g.query_id = $query OR g.group_id = $query OR contains(lower(g.query), lower($query))
        OR g.group_id IN (SELECT group_id FROM rewards WHERE request_id = $query))
    AND ($sort <> 'flat' OR g.flat)
ORDER BY CASE $sort WHEN 'best' THEN -g.reward_max WHEN 'worst' THEN g.reward_mean WHEN 'spread' THEN -g.reward_std
    ELSE -g.step END NULLS LAST, g.group_id LIMIT 200
