-- Which of these ids a stored message has.
SELECT message_id FROM store.messages WHERE message_id = ANY ($1::text[])
