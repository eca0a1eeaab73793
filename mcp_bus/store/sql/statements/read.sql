-- Messages in ($1, $2] in order: at most $3 rows, and $4 bytes unless the first is larger.
SELECT position, time_us, kind, source, target, correlation_id, message_id, causation_id, raw
FROM (
    SELECT
        *,
        sum(octet_length(raw)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING)
            - octet_length(raw) AS before
    FROM (
        SELECT * FROM store.messages WHERE position > $1 AND position <= $2
        ORDER BY position LIMIT $3
    ) AS page
) AS measured
WHERE before < $4
ORDER BY position
