"""Whole suites of other projects, as they are published, against our server."""
