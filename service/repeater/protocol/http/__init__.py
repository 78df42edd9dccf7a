"""HTTP/1.1: request heads, chunked bodies, answers, and the header of the PROXY protocol."""
