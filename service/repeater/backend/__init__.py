"""Callbacks: an application's back end is asked and told over HTTP (protocol, section 19)."""
