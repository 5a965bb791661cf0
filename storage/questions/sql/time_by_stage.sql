-- page: overview
-- order: 3
-- title: Where the time between two updates goes
-- draw: stack
-- x: step
-- series: stage
-- y: seconds
-- unit: seconds
-- says: The waits of each update: until its last group was written, from there until it was rewarded, and from there until the update. The widest part limits the loop. A long run's chart draws about 500 updates, evenly spaced.
WITH chain AS (
    SELECT step, topic, partition, record_offset, record_time_ms AS ended, before_ms AS began
    FROM drawn_updates WHERE record_time_ms > 0 AND before_ms > 0
), critical AS (
    SELECT c.step, c.began, c.ended, max(r.record_time_ms) AS rewarded, max(g.record_time_ms) AS written
    FROM chain c
    JOIN update_groups u USING (topic, partition, record_offset)
    JOIN first_rewards r ON r.group_id = u.group_id AND r.record_time_ms > 0
    JOIN first_generations g ON g.group_id = u.group_id AND g.record_time_ms > 0
    WHERE c.ended > c.began GROUP BY ALL
), cut AS (
    -- Work that went on while the learner was still busy is nobody's wait.
    SELECT step, began, ended, ended - began AS lasted, least(greatest(written, began), ended) AS written,
        least(greatest(rewarded, written, began), ended) AS rewarded
    FROM critical
), whole AS (
    SELECT count(*) AS intervals, median(lasted) AS middle FROM cut
), kept AS (
    -- A pause of ten medians is a restart.
    SELECT step, avg(written - began) AS generation, avg(rewarded - written) AS search,
        avg(ended - rewarded) AS learning, count(*) AS updates, any_value(intervals) AS intervals,
        any_value(middle) / 1000 AS median_seconds
    FROM cut, whole WHERE lasted <= 10 * middle GROUP BY step
)
SELECT step, unnest(['generation', 'search', 'learning']) AS stage,
    unnest([generation, search, learning]) / 1000 AS seconds, updates, intervals, median_seconds
FROM kept ORDER BY step
