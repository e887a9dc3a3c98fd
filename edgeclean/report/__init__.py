"""Write the report of a run: its document, its tables, its figures and its page."""
