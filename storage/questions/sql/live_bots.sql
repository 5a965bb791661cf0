-- page: live
-- order: 7
-- title: Bots by hour
-- draw: lines
-- x: hour
-- series: mark
-- y: share
-- unit: share
-- says: The share of the searches that carry the mark of a bot, by mark. They train nothing and count for no version.
-- empty: No outcome has the mark of a bot.
WITH marked AS (
    SELECT at_ms // 3600000 * 3600 AS hour, coalesce(bot, '') AS mark FROM final_outcomes
    WHERE coalesce(bot, '') <> 'judged'
), hours AS (SELECT hour, count(*) AS searches FROM marked GROUP BY hour),
marks AS (SELECT DISTINCT mark FROM marked WHERE mark <> '')
SELECT h.hour, m.mark, (SELECT count(*) FROM marked k WHERE k.hour = h.hour AND k.mark = m.mark) / h.searches AS share,
    h.searches
FROM hours h, marks m ORDER BY m.mark, h.hour
