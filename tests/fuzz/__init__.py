"""Strangers' bytes by the thousand at a whole server, by seed: `just fuzz --help`."""
