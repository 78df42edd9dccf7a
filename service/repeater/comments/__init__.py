"""The bundled application: sign up, sign in, comment, and every open page shows it at once.

Read in this order: `routes` (what a browser asks), `comments` (what it means), `store` (where it
is kept), `announcer` (how it reaches every page). The pages are in `static/`.
"""
