-- page: live
-- order: 4
-- title: Decisions
-- draw: table
-- says: Every step of a version's way to people and back, newest first, with its reason.
SELECT make_timestamp(greatest(least(at_ms, 4102444800000), 0) * 1000) AS at, version, kind,
    share, reason, "by", count(*) OVER () AS in_all
FROM first_decisions ORDER BY at_ms DESC LIMIT 200
