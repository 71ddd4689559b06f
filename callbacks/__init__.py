"""One callback per file. Import them as ``speedlit.callbacks``: the top-level name would give a second copy of every class."""
