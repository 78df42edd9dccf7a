"""The link between a supervisor, which holds the engine, and workers, which serve clients."""
