"""What is made of a run: a table, plots, pages, comparisons."""
