"""One file for each command of a client: a parsed request in, a reply out."""
