-- page: overview
-- order: 2
-- title: Training reward
-- draw: line
-- x: step
-- y: reward_mean
-- band: low, high
-- smooth: 9
-- unit: reward
-- says: The mean over groups of the mean over candidates, with its 95 % interval. A reward that rises while dev quality does not is a warning.
-- link: /examples?step={step}
SELECT step, lineage, reward_mean, reward_mean - 1.96 * reward_error AS low, reward_mean + 1.96 * reward_error AS high,
    groups, failed
FROM reward_by_version WHERE reward_mean IS NOT NULL ORDER BY step, lineage
