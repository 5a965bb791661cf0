-- page: rewards
-- order: 5
-- title: Length of the texts
-- draw: line
-- x: step
-- y: tokens
-- smooth: 9
-- unit: tokens
-- says: The mean number of tokens of a candidate by version. A long run's chart draws about 500 versions, evenly spaced.
SELECT step, avg(tokens) AS tokens, count(*) AS candidates FROM drawn_candidates WHERE surviving
GROUP BY step ORDER BY step
