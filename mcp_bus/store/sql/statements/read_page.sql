-- A page of the messages that {which} holds for, a condition on $1, after position $2: at most $3
-- rows, and $4 bytes unless the first is larger. `found` counts one row beyond it, if there is one.
SELECT
    position, time_us, kind, source, target, correlation_id, message_id, causation_id, raw, found
FROM (
    SELECT
        *,
        count(*) OVER () AS found,
        row_number() OVER (ORDER BY position) AS place,
        sum(octet_length(raw)) OVER (ORDER BY position) - octet_length(raw) AS before
    FROM (
        SELECT * FROM store.messages WHERE {which} AND position > $2
        ORDER BY position LIMIT $3 + 1
    ) AS page
) AS measured
WHERE before < $4 AND place <= $3
ORDER BY position
