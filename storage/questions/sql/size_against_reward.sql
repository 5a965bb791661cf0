-- page: rewards
-- order: 6
-- title: Length against reward
-- draw: scatter
-- x: tokens
-- y: reward
-- unit: reward
-- says: Up to 2,000 candidates, drawn by their hash. If long texts alone explain high rewards, the reward is being hacked.
-- link: /example?group={group_id}
SELECT c.tokens, o.reward, o.group_id, o.candidate, count(*) OVER () AS in_all
FROM first_outcomes o JOIN first_candidates c USING (run, group_id, candidate)
WHERE o.status = 'scored' ORDER BY hash(o.group_id, o.candidate) LIMIT 2000
