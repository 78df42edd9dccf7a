"""Streams that outlive the process: an SQLite file, with the memory as its index."""
