"""How a command runs: its flags are parsed, its errors end in one line, it stops on Ctrl-C.

Nothing here waits for TensorFlow, so that `--help` and a wrong flag are answered at once.
"""

import ast
import inspect
import sys

from absl import flags

# Arguments that flags of their own give.
_NOT_SET = {"schema", "dtype", "raw_dir", "data_dir"}


def run(main, define_flags, argv=None, takes_rest=False):
    """Parses a command's flags, calls `main(values)` and exits.

    Wrong flags, and `ValueError`s, `OSError`s and TensorFlow's own errors (wrong or damaged input),
    end in one line on stderr and exit status 2, unless `--traceback` asks for more.

    Args:
        main: callable. Called with the parsed `absl.flags.FlagValues`; may return an exit status.
        define_flags: callable. Called with the `absl.flags.FlagValues` to define flags in.
        argv: list of str or `None`. If `None`, `sys.argv`. Defaults to `None`.
        takes_rest: bool. Whether `main` is called with a second argument, the list of what follows
            `--`. Defaults to `False`.
    """
    argv, rest = argv or sys.argv, []
    if takes_rest and "--" in argv:
        end = argv.index("--")
        argv, rest = argv[:end], argv[end + 1 :]
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_boolean("traceback", False, "show where an error came from", flag_values=values)
    try:
        _parse(values, argv)
        sys.exit(main(values, rest) if takes_rest else main(values))
    except KeyboardInterrupt:
        sys.exit(130)
    except _input_errors() as error:
        if values.is_parsed() and values.traceback:
            raise
        sys.exit(_fail(error))


def _input_errors():
    """The errors that say what is wrong with the input; asked for when one has been raised."""
    errors = (flags.Error, ValueError, OSError)
    tensorflow = sys.modules.get("tensorflow")
    return errors if tensorflow is None else (*errors, tensorflow.errors.OpError)


def _parse(values, argv):
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(values.get_help())
        sys.exit(0)
    _parse_all(values, argv)


def parsed(define_flags, arguments):
    """The flags of another command, parsed.

    Args:
        define_flags: callable. As in `run`.
        arguments: list of str. Flags of that command.

    Returns:
        `absl.flags.FlagValues`.

    Raises:
        absl.flags.Error: On wrong flags.
    """
    values = flags.FlagValues()
    define_flags(values)
    _parse_all(values, ["", *arguments])
    return values


def _parse_all(values, argv):
    others = values(argv)[1:]
    if others:
        raise flags.Error(f"expected flags (--name=value) only. Received: {' '.join(others)}")


def _fail(error):
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def settings(assignments, function):
    """Turns `["name=value", ...]` into keyword arguments of `function`.

    Args:
        assignments: list of str. What `--set` was given. A value is read as a Python literal
            (`0.5`, `80,40`, `True`, `None`), else as a string.
        function: class or function. Its keyword arguments with defaults are the valid names.

    Returns:
        dict by name.

    Raises:
        ValueError: On a name that `function` does not have; it lists those it has.
    """
    valid = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in _NOT_SET
    }
    chosen = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or name not in valid:
            listing = ", ".join(f"{n}={default!r}" for n, default in valid.items())
            raise ValueError(
                f"--set takes name=value with one of: {listing}. Received: --set={assignment}"
            )
        try:
            chosen[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            chosen[name] = value
    return chosen
