"""What a run looks like to a person: tables in the terminal and one self-contained HTML page."""
