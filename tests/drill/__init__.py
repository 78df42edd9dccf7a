"""One fault at a time beside a whole server, and nobody loses an event in silence: `just drill`."""
