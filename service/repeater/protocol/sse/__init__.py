"""Server-Sent Events: what is written, and the id by which a client comes back."""
