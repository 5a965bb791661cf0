-- The team of each shown result of an interleaved list; empty for any other list.
DROP VIEW first_impressions;
ALTER TABLE impressions ADD COLUMN teams VARCHAR[];

CREATE VIEW first_impressions AS
SELECT * FROM impressions WHERE topic LIKE '%.impressions'
QUALIFY row_number() OVER (PARTITION BY run, impression_id ORDER BY partition, record_offset) = 1;
