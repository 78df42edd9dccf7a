"""One event to many: intake, repeater, hub, groups, outbox. Read it in this order."""
