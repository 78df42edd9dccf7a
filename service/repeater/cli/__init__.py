"""The `repeater` command; each group of its subcommands has a module."""
