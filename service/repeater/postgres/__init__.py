"""A client of PostgreSQL on Trio: one pipelined connection, and the schema of what it publishes."""
