"""Reads what is printed."""

import re


def table(text, title):
    """Cells by the first cell of each row below a title."""
    below = f"\n{text}".split(f"\n{title}", 1)[1].split("\n\n")[1]
    rows = [re.split(r" {2,}", line) for line in below.splitlines()]
    return {name: cells for name, *cells in rows}
