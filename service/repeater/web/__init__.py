"""HTTP that the native paths do not serve, in ordinary, readable Quart-Trio."""
