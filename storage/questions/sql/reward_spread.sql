-- page: rewards
-- order: 1
-- title: How rewards are spread
-- draw: line
-- x: step
-- y: median
-- band: p10, p90
-- smooth: 9
-- unit: reward
-- says: The median candidate, and the band that holds 80 % of the candidates of a version. A long run's chart draws about 500 versions, evenly spaced.
-- link: /examples?step={step}
SELECT step, quantile_cont(reward, .5) AS median, quantile_cont(reward, .1) AS p10, quantile_cont(reward, .9) AS p90,
    count(reward) AS candidates
FROM drawn_outcomes WHERE status = 'scored' AND surviving GROUP BY step ORDER BY step
