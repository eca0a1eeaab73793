"""The REST edge: commands become messages, queries are SQL on the read models."""
