"""Callbacks: questions and events for an application's back end, by HTTP (protocol, section 19)."""
