"""Transports: each sends bytes to one client. A transport does not know brokers."""
