-- page: overview
-- order: 2
-- title: Training reward
-- draw: lines
-- series: line
-- x: step
-- y: reward_mean
-- band: low, high
-- smooth: 9
-- unit: reward
-- says: The mean over groups of the mean over candidates, with its 95 % interval by groups (Student's). A reward that rises while dev quality does not is a warning. What a learner had done and lost is a line of its own. A long run's chart draws about 500 versions, evenly spaced.
-- link: /examples?step={step}
WITH means AS (
    SELECT step, lineage, surviving, avg(reward_mean) AS reward_mean, count(*) AS groups,
        sum(candidates - scored)::BIGINT AS failed, stddev_samp(reward_mean) / sqrt(count(reward_mean)) AS error,
        count(reward_mean) - 1 AS free
    FROM drawn_groups GROUP BY step, lineage, surviving
), wide AS (
    -- Student's 97.5 % quantile: exact for 1 and 2 degrees of freedom, else the Cornish-Fisher series (within .2 %).
    SELECT *, error * CASE free WHEN 1 THEN 12.706 WHEN 2 THEN 4.303
        ELSE 1.96 + 2.372 / free + 2.823 / free ** 2 + 2.556 / free ** 3 + 1.589 / free ** 4 END AS reach
    FROM means
), drawn AS (
    SELECT *, CASE WHEN surviving THEN 'reward' ELSE 'left behind: ' || lineage END AS line
    FROM wide WHERE reward_mean IS NOT NULL
)
SELECT step, lineage, reward_mean, reward_mean - reach AS low, reward_mean + reach AS high, groups, failed, line
FROM drawn ORDER BY line <> 'reward', line, step, lineage
