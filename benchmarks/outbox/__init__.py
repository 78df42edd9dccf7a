"""What publishing inside a transaction costs, and how soon subscribers have it."""
