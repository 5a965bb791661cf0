-- page: live
-- order: 3
-- title: Clients with the most clicks
-- draw: table
-- link: /live?client={client}
-- says: On a site with many people, one client with more than 5 % of all clicks may be a machine or a fraud. The names are pseudonyms.
WITH clicks AS (
    SELECT client, coalesce(bot, '') AS bot, sum(len(actions)) AS clicks, count(*) AS searches
    FROM final_outcomes WHERE coalesce(client, '') <> '' GROUP BY ALL
)
SELECT client, bot, searches, clicks, round(clicks / nullif(sum(clicks) OVER (), 0), 4) AS share_of_clicks,
    count(*) OVER () AS in_all
FROM clicks ORDER BY clicks DESC, client LIMIT 50
