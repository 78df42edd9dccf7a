"""The servers that are measured: an adapter for each, and the programs of those that need one."""
