-- Texts about products: which product was asked about, and what was read of each text. NULL where it was about a query.
ALTER TABLE requests ADD COLUMN product_id VARCHAR;
ALTER TABLE outcomes ADD COLUMN summary VARCHAR;
