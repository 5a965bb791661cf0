-- page: rewards
-- order: 6
-- title: Length against reward
-- draw: scatter
-- x: tokens
-- y: reward
-- unit: reward
-- says: Up to 2,000 candidates of about 500 versions, drawn by their hash. If long texts alone explain high rewards, the reward is being hacked.
-- link: /example?group={group_id}
SELECT c.tokens, o.reward, o.group_id, o.candidate, count(*) OVER () AS in_all
FROM drawn_outcomes o JOIN candidates c ON c.topic = o.source_topic AND c.partition = o.source_partition
    AND c.record_offset = o.source_offset AND c.candidate = o.candidate
WHERE o.status = 'scored' ORDER BY hash(o.group_id, o.candidate) LIMIT 2000
