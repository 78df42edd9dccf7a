"""The reports of a run: a table, plots, pages, comparisons."""
