"""Show a report: as text, and as a page for the browser."""
