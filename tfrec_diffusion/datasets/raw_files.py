"""A directory of raw files that the package makes itself, written once for the same options."""

import contextlib
import json
import pathlib
import shutil

_OPTIONS = "options.json"


@contextlib.contextmanager
def written_once(directory, options):
    """Has raw files written aside, unless the directory holds those of the same options.

    Files that were written with other options are replaced.

    Args:
        directory: str or `pathlib.Path`. Directory of the files. It appears when they are all
            written.
        options: dict. What the files depend on, as JSON can hold it.

    Yields:
        `pathlib.Path` of an empty directory to write to, or `None` if the files are there.

    Raises:
        ValueError: If `directory` holds files of another origin.
    """
    directory = pathlib.Path(directory)
    incomplete = directory.with_name(f"{directory.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    if (directory / _OPTIONS).exists():
        if json.loads((directory / _OPTIONS).read_text()) == options:
            yield None
            return
        directory.rename(incomplete)
        shutil.rmtree(incomplete)
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(
            f"`raw_dir` must be empty, absent or written by this data set. Received: {directory}, "
            f"which has files but no {_OPTIONS}"
        )
    incomplete.mkdir(parents=True)
    yield incomplete
    (incomplete / _OPTIONS).write_text(json.dumps(options, indent=1) + "\n")
    incomplete.replace(directory)
