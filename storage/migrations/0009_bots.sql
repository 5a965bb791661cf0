-- The mark of a bot's impression, and the final outcomes of people alone, which may train.
DROP VIEW final_outcomes;
ALTER TABLE impression_outcomes ADD COLUMN bot VARCHAR;

CREATE VIEW final_outcomes AS
SELECT * FROM impression_outcomes WHERE topic LIKE '%.impression-outcomes' AND final
QUALIFY row_number() OVER (PARTITION BY run, impression_id ORDER BY partition, record_offset) = 1;

CREATE VIEW trusted_outcomes AS SELECT * FROM final_outcomes WHERE coalesce(bot, '') = '';
