-- Why a group was rejected or disputed; and the chain of hashes that makes a rewritten past visible. NULL in records of
-- older writers.
ALTER TABLE update_groups ADD COLUMN reason VARCHAR;
ALTER TABLE updates ADD COLUMN record_sha256 VARCHAR;
ALTER TABLE updates ADD COLUMN parent_update_sha256 VARCHAR;
ALTER TABLE updates ADD COLUMN parent_manifest_sha256 VARCHAR;
ALTER TABLE policy_versions ADD COLUMN manifest_sha256 VARCHAR;
ALTER TABLE policy_versions ADD COLUMN requests_admitted MAP(BIGINT, BIGINT);
