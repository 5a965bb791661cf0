-- A version may say that it was made at any time, and a time beyond what a timestamp holds would break each question to
-- this view. Times before 1970 and after 2099 are shown as those ends.
CREATE OR REPLACE VIEW version_lineage AS
SELECT
    run, lineage, step, weights_sha256, parent_lineage, parent_step, parent_sha256, path, status, requests_consumed,
    epoch_ms(greatest(least(made_at_ms, 4102444800000), 0)) AS made_at
FROM policy_versions
QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset DESC) = 1;
