"""The settings in force: one place to look at whenever they are needed, so that they can change."""

from __future__ import annotations

from repeater.config.settings import Settings


class CurrentSettings:
    """Lives as long as the server. Who must follow a change calls it, and keeps nothing of it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.api_key = settings.rest_key()
        """The same object for as long as the server lives; it follows the settings by itself."""

    def __call__(self) -> Settings:
        """The settings in force at this moment."""
        return self._settings

    def replace(self, settings: Settings) -> None:
        """Let others hold from now on."""
        self._settings = settings
        self.api_key.replace(settings.api_keys)
