-- The facts of the registry, which are few among many messages: of one agent, and of all in order.

CREATE INDEX messages_facts_of_agent ON store.messages (target, position)
    WHERE kind = 'event' AND source = 'registry';
CREATE INDEX messages_facts_of_agents ON store.messages (position)
    WHERE kind = 'event' AND source = 'registry';
