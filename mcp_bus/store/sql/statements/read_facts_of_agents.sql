-- A page of the events of the registry after position $1: at most $2 rows, and $3 bytes unless the
-- first is larger. `found` counts one row beyond the page, if there is one.
SELECT
    position, time_us, kind, source, target, correlation_id, message_id, causation_id, raw, found
FROM (
    SELECT
        *,
        count(*) OVER () AS found,
        row_number() OVER (ORDER BY position) AS place,
        sum(octet_length(raw)) OVER (ORDER BY position) - octet_length(raw) AS before
    FROM (
        SELECT * FROM store.messages
        WHERE kind = 'event' AND source = 'registry' AND position > $1
        ORDER BY position LIMIT $2 + 1
    ) AS page
) AS measured
WHERE before < $3 AND place <= $2
ORDER BY position
