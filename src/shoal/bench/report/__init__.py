"""A report of a benchmark, as a table and as a page with plots."""
