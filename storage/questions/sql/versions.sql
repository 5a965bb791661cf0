-- page: versions
-- order: 1
-- title: Policy versions
-- draw: table
-- says: Every version with its reward, dev quality and decisions. Choose two to compare them query by query.
-- link: /examples?step={step}
SELECT v.step, v.lineage, v.status, r.groups, round(r.reward_mean, 4) AS reward, round(d.value, 4) AS dev, d.measure,
    v.parent_step AS parent, v.made_at, count(*) OVER () AS in_all
FROM version_lineage v
LEFT JOIN reward_by_version r USING (run, lineage, step)
LEFT JOIN first_dev_scores d USING (run, lineage, step)
ORDER BY v.step DESC, v.lineage LIMIT 500
