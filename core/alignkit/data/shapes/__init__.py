"""Row shapes: recognising a source's columns and bringing its rows to one form."""
