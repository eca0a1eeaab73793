-- The messages at these positions.
SELECT position, time_us, kind, source, target, correlation_id, message_id, causation_id, raw
FROM store.messages
WHERE position = ANY ($1::bigint[])
