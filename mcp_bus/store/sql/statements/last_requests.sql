-- For each conversation $2[i]: the last request of source $1 before position $3[i].
SELECT
    m.position, m.time_us, m.kind, m.source, m.target, m.correlation_id, m.message_id,
    m.causation_id, m.raw, asked.before
FROM unnest($2::text[], $3::bigint[]) AS asked (correlation_id, before)
CROSS JOIN LATERAL (
    SELECT * FROM store.messages AS one
    WHERE one.correlation_id = asked.correlation_id AND one.position < asked.before
        AND one.kind = 'request' AND one.source = $1
    ORDER BY one.position DESC LIMIT 1
) AS m
