-- page: overview
-- order: 5
-- title: Dead letters
-- draw: table
-- says: Records that a worker gave up on, by stage, with the newest reason. `searchloop dead-letters` reads and resends them.
SELECT stage, count(*) AS records, arg_max(error, record_time_ms) AS newest_reason,
    make_timestamp(greatest(least(max(record_time_ms), 4102444800000), 0) * 1000) AS newest
FROM dead_letter GROUP BY stage ORDER BY records DESC, stage
