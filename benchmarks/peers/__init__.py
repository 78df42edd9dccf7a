"""The measured servers: an adapter for each, and programs for the servers that need one."""
