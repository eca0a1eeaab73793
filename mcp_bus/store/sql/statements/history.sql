-- What a decider reads of ($1, $2], as the log held it: messages, and repeated ones, which the log
-- holds as well. At most $3 rows, and $4 bytes unless the first is larger.
SELECT position, time_us, raw, found
FROM (
    SELECT
        *,
        count(*) OVER () AS found,
        sum(octet_length(raw)) OVER (ORDER BY position) - octet_length(raw) AS before
    FROM (
        SELECT position, time_us, raw FROM store.messages WHERE position > $1 AND position <= $2
        UNION ALL
        SELECT position, time_us, raw FROM store.quarantine
        WHERE position > $1 AND position <= $2 AND code = 'duplicate'
        ORDER BY position LIMIT $3
    ) AS page
) AS measured
WHERE before < $4
ORDER BY position
