"""Amazon Books (McAuley, 2014): next-item requests from a file of reviews and one of categories."""

import ast
import collections
import csv
import functools
import json
import re

import tensorflow_datasets as tfds

from tfrec_diffusion.datasets import next_item, text_files

_SOURCE = "http://jmcauley.ucsd.edu/data/amazon/"
_SECONDS = range(2**63)
_PLACES = 5  # that are reported for each reason
# Beginning of most lines of the metadata. It is so narrow a pattern that it needs no parser.
_FIRST_ASIN = re.compile(rb"\{'asin': '(\w+)'")


class AmazonBooks(next_item.NextItem):
    """Next-item requests from `reviews_Books_5.json` and `meta_Books.json`, plain or `.gz`.

    Arguments and splits are those of `next_item.NextItem`, but `history_length` defaults to `100`
    and `protocol` to `"by_user"`, the protocol of DIEN and HierDiffuse: each user has one positive,
    the last review, and one negative, and the users of the test are not those of training.

    A behavior is a review. The files tell only its day, so reviews of one day are in the order of
    the file and count as history of each other, as in DIEN. A book without metadata has a missing
    category.
    """

    VERSION = tfds.core.Version("1.0.0")
    dtype = "string"
    exact_times = False

    # `prepare --set` and `options` read names and defaults from this signature.
    __init__ = functools.partialmethod(
        next_item.NextItem.__init__, history_length=100, protocol="by_user"
    )

    def load(self, database):
        """See `NextItem.load`."""
        reviews = self.raw_file("reviews_Books_5.json", _SOURCE)
        metadata = self.raw_file("meta_Books.json", _SOURCE)
        columns = {"user": "VARCHAR", "item": "VARCHAR", "time": "BIGINT"}
        self._load(database, "behaviors", reviews, _parse_review, columns)
        database.drop_repeated("behaviors", '"user", item, time', "review repeated")
        books = {
            item.encode()
            for chunk in database.chunks("SELECT DISTINCT item FROM behaviors")
            for item in chunk["item"]
        }
        columns = {"item": "VARCHAR", "category": "VARCHAR"}
        self._load(
            database, "metadata", metadata, lambda line: _parse_metadata(line, books), columns
        )
        database.drop_repeated("metadata", "item", "asin repeated")
        database.execute("ALTER TABLE behaviors ADD COLUMN category VARCHAR DEFAULT ''")
        database.execute(
            "UPDATE behaviors SET category = metadata.category FROM metadata "
            "WHERE behaviors.item = metadata.item"
        )
        ((known,),) = database.execute("SELECT count(*) FROM metadata")
        self.report.note("books without category", len(books) - known)

    def _load(self, database, table, path, parse, columns):
        """Loads a raw file whose format DuckDB cannot read; `parse` turns a line into a row."""
        rows = self.scratch / f"usable lines of {path.name}.csv"
        unusable = collections.Counter()
        places = collections.defaultdict(list)
        number = 0
        with rows.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(columns)
            try:
                for line in self._lines(path):
                    number += 1
                    try:
                        writer.writerow(parse(line))
                    except (_BadLineError, _NotNeededError) as error:
                        unusable[type(error), str(error)] += 1
                        if unusable[type(error), str(error)] <= _PLACES:
                            places[str(error)].append(f"{path.name}:{number}")
            except text_files.DamagedFileError as error:
                reason = f"damaged from here on ({error})"
                unusable[_BadLineError, reason] += error.lost_lines
                places[reason].append(f"{path.name}:{number + 1}")
        database.load(table, [rows], columns)
        rows.unlink()
        self.report.read(table, unusable.total())
        for (kind, reason), count in unusable.items():
            bad = kind is _BadLineError
            self.report.drop(table, reason, count, places[reason], bad=bad)

    @staticmethod
    def _lines(path):
        return tfds.core.utils.tqdm(
            text_files.lines(path),
            desc=f"Reading {path.name}", unit=" lines", leave=False, mininterval=1.0,
        )  # fmt: skip


class _BadLineError(Exception):
    """What is wrong with a line."""


class _NotNeededError(Exception):
    """Why a line is of no use."""


def _parse_review(line):
    """User, item and time of a review, a line of JSON."""
    review = _parse(line, json.loads, "JSON")
    time = review.get("unixReviewTime")
    # A bool is an int to Python.
    if isinstance(time, bool) or not isinstance(time, int) or time not in _SECONDS:
        raise _BadLineError("no unixReviewTime")
    return _text(review.get("reviewerID"), "reviewerID"), _text(review.get("asin"), "asin"), time


def _parse_metadata(line, books):
    """Item and category of one of the `books`, from a line that is a Python literal."""
    # Six in seven lines are about other books, and it would take minutes to parse them as well.
    begins = _FIRST_ASIN.match(line)
    if begins and begins[1] not in books:
        raise _NotNeededError("book without a review")
    book = _parse(line, ast.literal_eval, "a Python literal")
    item = _text(book.get("asin"), "asin")
    if item.encode() not in books:
        raise _NotNeededError("book without a review")
    try:
        category = book["categories"][0][-1]
    except (KeyError, IndexError, TypeError):
        category = None
    return item, _text(category, "category")


def _parse(line, parse, kind):
    try:
        record = parse(line.decode())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _BadLineError(f"not {kind}") from None
    if not isinstance(record, dict):
        raise _BadLineError(f"not {kind} of fields by name")
    return record


def _text(value, name):
    # Escapes can spell what a vocabulary file cannot hold: line breaks, zeros, half characters.
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise _BadLineError(f"no {name}")
    return value
