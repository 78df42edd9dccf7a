"""The server as a whole: made from the settings, run, reloaded and shut down."""
