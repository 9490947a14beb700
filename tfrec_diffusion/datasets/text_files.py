"""Text files, plain or compressed: reads them as bytes, up to where they are damaged."""

import bz2
import contextlib
import gzip
import io
import os
import re
import zlib

import pyarrow
import tensorflow_datasets as tfds

# What compresses a file, by the ending of its name.
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


class DamagedFileError(Exception):
    """The rest of a compressed file cannot be read.

    Args:
        message: str. What is wrong.
        lost_lines: int. How many lines the rest may hold; at least 1, because a file that has been
            cut off was longer. Defaults to `1`.
    """

    def __init__(self, message, lost_lines=1):
        super().__init__(message)
        self.lost_lines = lost_lines


def check_is_local(name, path):
    """Checks that a path is not the address of a store, such as `gs://bucket`.

    Args:
        name: str. What has that path, for the error.
        path: str or `pathlib.Path`. The path.

    Raises:
        ValueError: If it is one.
    """
    # `pathlib` makes one slash of two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"{name} must be on a disk of this machine: copy it there, or mount it. "
            f"Received: {path}"
        )


def compression(path):
    """What compresses a file.

    Args:
        path: `pathlib.Path`. Path of the file.

    Returns:
        str, a value of `COMPRESSIONS`, or `None` if the file is plain.
    """
    return COMPRESSIONS.get(path.suffix.lower())


@contextlib.contextmanager
def opened(path):
    """Opens a file to read its text as bytes.

    Args:
        path: `pathlib.Path`. Path of a file, plain or compressed.

    Yields:
        Tuple of the binary file and of the file that is read for it, whose `tell()` is a position
        in the file as it lies on disk.

    Raises:
        DamagedFileError: If a compressed file is cut off or damaged, where the reader comes to
            that place.
    """
    with path.open("rb") as raw:
        kind = compression(path)
        try:
            if kind == "gzip":
                with gzip.open(raw) as file:
                    yield file, raw
            elif kind == "bzip2":
                with bz2.open(raw) as file:
                    yield file, raw
            elif kind == "zstd":
                with pyarrow.CompressedInputStream(raw, "zstd") as stream:
                    yield io.BufferedReader(stream), raw
            else:
                yield raw, raw
        except (EOFError, zlib.error, OSError) as error:
            # An error with a number is one of the disk.
            if kind is None or getattr(error, "errno", None) is not None:
                raise
            raise DamagedFileError(str(error)) from error


def lines(path):
    """Reads a file line by line.

    Args:
        path: `pathlib.Path`. A text file, plain or compressed.

    Yields:
        bytes, one line each.

    Raises:
        DamagedFileError: If a compressed file is cut off or damaged, after the lines before that
            place.
    """
    number, position = 0, 0
    try:
        with opened(path) as (file, raw):
            try:
                for line in file:
                    yield line
                    number += 1
            except Exception:
                position = raw.tell()
                raise
    except DamagedFileError as error:
        lost = number * (path.stat().st_size - position) / max(1, position)
        raise DamagedFileError(str(error), max(1, round(lost))) from error


def blocks(path, size):
    """Reads a file in large pieces, with a progress bar.

    Args:
        path: `pathlib.Path`. A text file, plain or compressed.
        size: int. About how many bytes a piece has.

    Yields:
        bytes.

    Raises:
        DamagedFileError: If a compressed file is cut off or damaged.
    """
    bar = tfds.core.utils.tqdm(
        desc=f"Checking {path.name}", total=path.stat().st_size, unit="B", unit_scale=True,
        leave=False,
    )  # fmt: skip
    with opened(path) as (file, raw), bar:
        while block := file.read(size):
            bar.update(raw.tell() - bar.n)
            yield block
