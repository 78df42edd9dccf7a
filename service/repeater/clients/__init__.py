"""One connection from its first byte to its end, for every transport and protocol."""
