-- What each version may show for the part of the queries that a search belongs to; empty if no version has routes.
DROP VIEW first_impressions;
ALTER TABLE impressions ADD COLUMN routes MAP(VARCHAR, VARCHAR);

CREATE VIEW first_impressions AS
SELECT * FROM impressions WHERE topic LIKE '%.impressions'
QUALIFY row_number() OVER (PARTITION BY run, impression_id ORDER BY partition, record_offset) = 1;
