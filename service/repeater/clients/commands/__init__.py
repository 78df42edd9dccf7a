"""One file for each command of a client: it takes a parsed request and returns a reply."""
