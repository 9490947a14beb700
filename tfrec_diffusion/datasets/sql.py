"""Names and texts in SQL."""


def quoted(name):
    """Quotes a name as an SQL identifier.

    Args:
        name: str.

    Returns:
        str.
    """
    return '"' + name.replace('"', '""') + '"'


def literal(value):
    """Quotes a value's text as an SQL string.

    Args:
        value: Anything that `str` makes a text of.

    Returns:
        str.
    """
    return "'" + str(value).replace("'", "''") + "'"
