"""The workloads: one module for each kind of question."""
