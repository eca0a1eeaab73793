-- End the session that holds lock $1 and has waited for its client for $2 s, within $3 s; no row
-- if none has.
SELECT pg_terminate_backend(holder.pid, (1000 * $3::float8)::bigint)
FROM pg_locks AS held
JOIN pg_stat_activity AS holder USING (pid)
WHERE held.locktype = 'advisory'
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (held.classid::bigint << 32) | held.objid::bigint = hashtextextended($1, 0)
    AND held.granted
    AND holder.wait_event_type = 'Client'
    AND holder.state_change < clock_timestamp() - make_interval(secs => $2)
