-- The messages with these ids.
SELECT position, time_us, kind, source, target, correlation_id, message_id, causation_id, raw
FROM store.messages
WHERE message_id = ANY ($1::text[])
