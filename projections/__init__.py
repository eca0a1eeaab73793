"""Read models: tables that are a pure fold of the event store, and how they are rebuilt."""
