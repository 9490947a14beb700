"""Checks of constructor arguments, in one wording."""


def check_positive_integers(**arguments):
    """Raises a `ValueError` that names the first argument that is not an integer >= 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_not_negative(**arguments):
    """Raises a `ValueError` that names the first argument that is not a number >= 0."""
    for name, value in arguments.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"`{name}` must be >= 0. Received: {name}={value!r}")


def check_share(**arguments):
    """Raises a `ValueError` that names the first argument that is not a number in [0, 1)."""
    for name, value in arguments.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={value!r}")


def check_choice(name, value, choices):
    """Raises a `ValueError` that names the argument and its choices if `value` is none of them."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {sorted(choices)}. Received: {name}={value!r}")


def choose(name, value, choices):
    """choices[value], after `check_choice`."""
    check_choice(name, value, choices)
    return choices[value]
