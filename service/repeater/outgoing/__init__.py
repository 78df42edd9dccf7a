"""Publishes what transactions of a PostgreSQL database have noted in the schema `repeater`."""
