"""The report: figures, tables, the page and the document."""
