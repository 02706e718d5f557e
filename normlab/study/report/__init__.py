"""How is it said? Text, tables, figures and the HTML page."""
