-- page: overview
-- order: 4
-- title: The fate of every candidate
-- draw: table
-- says: Each candidate ends in exactly one column. "waiting" is what no environment has answered yet.
SELECT split, candidates, scored, failed, expired, waiting, uses_max AS most_gradients FROM accounting ORDER BY split
