"""The server API: what back ends call (protocol, section 18), as functions on a node.

A call is a method's name and a body's bytes; what comes back is an `Answer`. No HTTP server is
known here: the native transport and the Quart routes both put requests in and answers out. A new
method is a small function in its group's module, and a line in the table of `methods.py`.
"""
