"""What a supervisor answers and counts for its workers: what a server has only once."""
