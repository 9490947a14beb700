"""Encodes the parts of splits in processes beside this one, which gets their records in order."""

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
    """Processes that encode, while the `with` block lasts.

    Args:
        count: Of processes; 1: there is none, this one does it.
        scratch: Directory for temporary files.
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
        """Yields `(key, bytes)` of a split's parts, in their order.

        Of the parts, some more than there are processes are in memory at a time.

        Args:
            name: Of the split.
            split: `requests.Split`.
            encode: `requests.RecordEncoder`.
            counts: `collections.Counter` of the split, which is added to.
        """
        if not self._pool:
            for part in split.parts:
                yield from encode(split, part, counts)
            return
        # Vocabularies are too large to go with each part.
        path = self._scratch / f"{name}.encoder"
        path.write_bytes(pickle.dumps((split, encode)))
        for records, of_part in self._in_order(functools.partial(_encode, str(path)), split.parts):
            counts.update(of_part)
            yield from records

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
    # Ctrl-C reaches all processes; the parent ends the others. If it is killed, they end as well.
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
