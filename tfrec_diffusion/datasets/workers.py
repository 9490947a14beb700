"""Encodes the parts of splits in other processes of this machine; their records come in order."""

import collections
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import pickle
import signal
import threading


class Workers:
    """Processes that encode requests, for the length of a `with` block.

    Args:
        count: int. Number of processes. If `1`, this process encodes and no other is started.
        scratch: `pathlib.Path`. Directory for temporary files.
    """

    def __init__(self, count, scratch):
        self._count = count
        self._scratch = scratch
        self._pool = None

    def __enter__(self):
        if self._count > 1:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._count,
                # A fork would share TensorFlow's threads, which are not there.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_live_with_parent,
            )
        return self

    def __exit__(self, *_):
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def records(self, name, split, encode, counts):
        """Encodes the parts of a split, with few more parts in memory than there are processes.

        Args:
            name: str. Name of the split.
            split: `records.Split`. The split.
            encode: `records.RecordEncoder`. Encoder of the data set.
            counts: `collections.Counter`. Counts of the split, which are added to.

        Yields:
            Pairs of a unique key (str or int) and a record (bytes), in the order of the parts.

        Raises:
            OSError: If a process ends before its work is done.
        """
        for records in self.records_of_parts(name, split, encode, counts):
            yield from records

    def records_of_parts(self, name, split, encode, counts):
        """As `records`, part by part.

        Args:
            name: str. As in `records`.
            split: `records.Split`. As in `records`.
            encode: `records.RecordEncoder`. As in `records`.
            counts: `collections.Counter`. As in `records`.

        Yields:
            Iterable of the keys and records of each part.

        Raises:
            OSError: As `records`.
        """
        if not self._pool:
            for part in split.parts:
                yield encode(split, part, counts)
            return
        # Vocabularies are too large to go with each part.
        path = self._scratch / f"{name}.encoder"
        path.write_bytes(pickle.dumps((split, encode)))
        for records, of_part in self._in_order(functools.partial(_encode, str(path)), split.parts):
            counts.update(of_part)
            yield records

    def _in_order(self, function, parts):
        pending = collections.deque()
        for part in parts:
            pending.append(self._pool.submit(function, part))
            if len(pending) > self._count:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _result(future):
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise OSError("a process of `workers` ended, perhaps for lack of memory") from error


def _live_with_parent():
    # Ctrl-C reaches all processes, and the parent ends the others. If the parent is killed, they
    # must notice by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@functools.lru_cache(maxsize=1)
def _load(path):
    return pickle.loads(pathlib.Path(path).read_bytes())


def _encode(path, part):
    split, encode = _load(path)
    counts = collections.Counter()
    return list(encode(split, part, counts)), counts
