"""Where publications are numbered and kept. A broker gets an intake and knows no hub."""
