"""From accept() to a served request."""
