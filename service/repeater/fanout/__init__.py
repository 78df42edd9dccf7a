"""One event to many: intake, repeater, hub, groups, outbox. Read the modules in this order."""
