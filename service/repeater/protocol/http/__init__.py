"""HTTP/1.1: request heads, chunked bodies, and the header that a proxy puts in front."""
