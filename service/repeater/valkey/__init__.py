"""A client of Valkey and Redis on Trio: pipelined connections that come back by themselves."""
