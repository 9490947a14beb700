"""Tables as text, for a terminal."""


def table(title, header, rows):
    """A table under its title.

    Args:
        title: str.
        header: list of str. Names of the columns.
        rows: list of lists. Cells of each row, of any type.

    Returns:
        str.
    """
    return "\n".join([title, "", *aligned(header, rows)])


def aligned(header, rows):
    """A table with its first column aligned to the left, the others to the right.

    Args:
        header: list of str. Names of the columns.
        rows: list of lists. Cells of each row, of any type.

    Returns:
        list of str. Its lines.
    """
    rows = [tuple(map(str, header)), *(tuple(map(str, row)) for row in rows)]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]).rstrip()
        for name, *cells in rows
    ]
