"""The bundled application: users sign up, sign in and comment; open pages show comments at once.

Read in this order: `routes` (the requests of a browser), `comments` (what the requests do), `store`
(the database), `announcer` (the way of a comment to every page). The pages are in `static/`.
"""
