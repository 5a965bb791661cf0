-- page: versions
-- order: 1
-- title: Policy versions
-- draw: table
-- says: Every version with its reward, dev quality and decisions. Choose two to compare them query by query.
-- link: /examples?step={step}
SELECT v.step, v.lineage, v.status, r.groups, round(r.reward_mean, 4) AS reward, round(d.value, 4) AS dev, d.measure,
    v.parent_step AS parent,
    -- A clock that was far off must not take the table away.
    make_timestamp(greatest(least(v.made_at_ms, 4102444800000), 0) * 1000) AS made_at, count(*) OVER () AS in_all
FROM (
    SELECT run, lineage, step, status, parent_step, made_at_ms FROM counted_versions
    QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset DESC) = 1
) v
LEFT JOIN reward_by_version r USING (run, lineage, step)
LEFT JOIN first_dev_scores d USING (run, lineage, step)
ORDER BY v.step DESC, v.lineage LIMIT 500
