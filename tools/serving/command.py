"""How a tool ends: errors in one line and exit status 2, as the package's commands have it."""

import sys

import tensorflow as tf
from absl import app, flags
from serving.client import ServingError


def run(main):
    """Parses the flags, calls `main(values)` with them and exits.

    Wrong flags, failed calls and what else is wrong with files, ports or values end in one line on
    stderr and exit status 2; Ctrl-C ends in 130.

    Args:
        main: May return an exit status.
    """
    app.define_help_flags()
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise flags.Error(f"expected flags (--name=value) only. Received: {' '.join(rest)}")
        sys.exit(main(flags.FLAGS))
    except KeyboardInterrupt:
        sys.exit(130)
    except (flags.Error, ServingError, ValueError, OSError, tf.errors.OpError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
