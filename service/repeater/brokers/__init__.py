"""Where publications are numbered and kept. A broker is handed an intake and knows no hub."""
