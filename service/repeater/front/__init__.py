"""The way of a connection from accept() to a served request."""
