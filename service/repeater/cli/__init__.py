"""The `repeater` command, one file for each group of its subcommands."""
