"""The server API: what back ends call (protocol, section 18), as functions on a node.

A call takes a method's name and a body's bytes, and returns an `Answer`. This room knows no HTTP
server: the native transport and the Quart routes both make calls here and send the answers. A new
method is a small function in its group's module, and a line in the table of `methods.py`.
"""
