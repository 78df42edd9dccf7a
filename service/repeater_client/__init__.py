"""Publish to Repeater from inside a transaction of one's own, in PostgreSQL.

`repeater_client.django` publishes, `repeater_client.testing` shows a test what is published.
Nothing here needs the server, which has a distribution of its own, `repeater-server`.
"""

from __future__ import annotations

__version__ = "0.1.0"
