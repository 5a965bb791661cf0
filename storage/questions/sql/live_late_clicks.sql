-- page: live
-- order: 6
-- title: Late and lost clicks
-- draw: table
-- says: Actions that count for no impression, by reason, as a share of all actions, and how long after the impression they came. They are kept as dead letters.
SELECT split_part(d.error, ':', 1) AS reason, count(*) AS actions,
    round(count(*) / (SELECT count(*) FROM first_user_actions), 4) AS share_of_actions,
    round(median(a.at_ms - i.at_ms) / 3600000, 2) AS median_hours_after, any_value(d.error) AS meaning
FROM dead_letter d
JOIN user_actions a ON a.topic = d.source_topic AND a.partition = d.source_partition
    AND a.record_offset = d.source_offset
LEFT JOIN first_impressions i ON i.run = a.run AND i.impression_id = a.impression_id
WHERE d.stage = 'joiner' GROUP BY reason ORDER BY actions DESC, reason
