-- Move checkpoint $1 from $2 to $3 and tell channel $4; no row when it is not at $2.
WITH moved AS (
    UPDATE bus.checkpoints SET position = $3 WHERE name = $1 AND position = $2
    RETURNING position
)
SELECT pg_notify($4, position::text) FROM moved
