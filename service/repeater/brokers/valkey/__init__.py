"""The broker of several nodes: streams in Valkey or Redis, events by its bus."""
