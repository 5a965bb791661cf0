-- page: overview
-- order: 3
-- title: Where the time between two updates goes
-- draw: stack
-- x: step
-- series: stage
-- y: seconds
-- unit: seconds
-- says: The way of the last group of each update: waiting for its text, for its reward, and for the learner. The widest part limits the loop.
WITH chain AS (
    SELECT step, topic, partition, record_offset, record_time_ms AS ended,
        lag(record_time_ms) OVER (ORDER BY step) AS began
    FROM surviving_updates
), critical AS (
    SELECT c.step, c.began, c.ended, max(r.record_time_ms) AS rewarded, arg_max(g.record_time_ms, r.record_time_ms) AS written
    FROM chain c
    JOIN update_groups u USING (topic, partition, record_offset)
    JOIN first_rewards r ON r.group_id = u.group_id
    JOIN first_generations g ON g.group_id = u.group_id
    WHERE c.began IS NOT NULL GROUP BY ALL
), cut AS (
    SELECT step, began, ended, least(greatest(written, began), ended) AS written,
        least(greatest(rewarded, written, began), ended) AS rewarded
    FROM critical
), lasting AS (
    SELECT *, ended - began AS lasted FROM cut WHERE ended > began
), binned AS (
    -- A pause of ten medians is a restart.
    SELECT step // width * width AS step, avg(written - began) AS generation, avg(rewarded - written) AS search,
        avg(ended - rewarded) AS learning
    FROM lasting, (SELECT greatest(1, max(step) // 1000) AS width, 10 * median(lasted) AS longest FROM lasting)
    WHERE lasted <= longest GROUP BY ALL
)
SELECT step, unnest(['generation', 'search', 'learning']) AS stage,
    unnest([generation, search, learning]) / 1000 AS seconds
FROM binned ORDER BY step
