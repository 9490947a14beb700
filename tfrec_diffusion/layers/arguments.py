"""Checks of constructor arguments, with one wording for all error messages."""


def check_positive_integers(**arguments):
    """Checks that every argument is an integer of at least 1.

    Args:
        **arguments: Values to check, each under the name of its constructor argument.

    Raises:
        ValueError: If one is not. The message names the first such argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_not_negative(**arguments):
    """Checks that every argument is a number of at least 0.

    Args:
        **arguments: Values to check, each under the name of its constructor argument.

    Raises:
        ValueError: If one is not. The message names the first such argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"`{name}` must be >= 0. Received: {name}={value!r}")


def check_share(**arguments):
    """Checks that every argument is a number in [0, 1).

    Args:
        **arguments: Values to check, each under the name of its constructor argument.

    Raises:
        ValueError: If one is not. The message names the first such argument.
    """
    for name, value in arguments.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={value!r}")


def check_choice(name, value, choices):
    """Checks that an argument is one of the values that it may have.

    Args:
        name: str. Name of the constructor argument.
        value: Value to check.
        choices: Collection of the allowed values.

    Raises:
        ValueError: If `value` is not in `choices`. The message lists them.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {sorted(choices)}. Received: {name}={value!r}")


def choose(name, value, choices):
    """Returns `choices[value]`, after `check_choice`.

    Args:
        name: str. Name of the constructor argument.
        value: Value to check.
        choices: dict. What each allowed value stands for.
    """
    check_choice(name, value, choices)
    return choices[value]
