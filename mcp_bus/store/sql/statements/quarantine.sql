-- A page of what is in quarantine after position $1: at most $2 rows, and one more if there is one.
SELECT position, time_us, subject, code, reason, octet_length(raw) AS bytes
FROM store.quarantine
WHERE position > $1
ORDER BY position LIMIT $2 + 1
