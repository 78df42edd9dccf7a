"""Centrifugo's JSON protocol: commands in, replies and pushes out."""
