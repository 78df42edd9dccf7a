"""Sans-I/O: bytes in, values out. No await, no clock, no socket in this package."""
