"""One connection's life, whatever its transport and protocol."""
