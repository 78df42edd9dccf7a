"""Everything over HTTP that is not a native subscription: ordinary, readable Quart-Trio."""
