"""WebSocket: the opening handshake and the frames."""
