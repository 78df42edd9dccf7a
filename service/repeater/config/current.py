"""The settings in force: code reads them here each time, so that they can change."""

from __future__ import annotations

from repeater.config.settings import Settings


class CurrentSettings:
    """The holder of the settings in force. Lives as long as the server.

    Code that must follow a change calls this object each time, and keeps no settings of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.api_key = settings.rest_key()
        """The same object for as long as the server runs; `replace` gives it the new keys."""

    def __call__(self) -> Settings:
        """The settings in force at this moment."""
        return self._settings

    def replace(self, settings: Settings) -> None:
        """Put other settings in force."""
        self._settings = settings
        self.api_key.replace(settings.api_keys)
