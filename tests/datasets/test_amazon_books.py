import collections
import gzip
import json

import pytest

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

DAY = 86400
HISTORIES = {"A2": ["b1", "b2", "b3", "b4", "b5"], "A1": ["b5", "b4", "b3", "b2", "b1"]}
CATEGORIES = {
    "b1": [["Books", "Art"]],
    "b2": [["Books", "Children's Books", 'The "Best", Ever']],
    "b3": [["Books"], ["Toys", "Games"]],
    "b4": [["Books", "Art"]],
    "other": [["Books", "Never reviewed"]],
}


def review(user, item, time, **fields):
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, **fields})


def reviews(histories):
    return [review(u, b, t * DAY) for u, books in histories.items() for t, b in enumerate(books)]


def metadata(categories):
    return [
        repr({"title": "{'asin': 'other'}", "asin": book, "categories": of_book})
        for book, of_book in categories.items()
    ]


@pytest.fixture
def prepared(tmp_path):
    """`prepared(review lines, metadata lines, **options)`: directory of the requests."""

    def make(reviews, metadata, **options):
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        for name, lines in (("reviews_Books_5.json", reviews), ("meta_Books.json", metadata)):
            lines = (line if isinstance(line, bytes) else line.encode() for line in lines)
            (raw_dir / name).write_bytes(b"".join(line + b"\n" for line in lines))
        options = {"protocol": "last_behaviors", **options}
        arguments = {"raw_dir": raw_dir, "data_dir": f"{raw_dir}_data", **options}
        preparation = Preparation(max_bad_rows=1)
        return prepare("amazon_books", preparation=preparation, **arguments)

    return make


def positives(requests):
    """The positive of each user."""
    return {request["user"]: request for request in requests if request["label"] == [1]}


def test_requests(prepared, read_requests):
    directory = prepared(reviews(HISTORIES), metadata(CATEGORIES))
    requests = positives(read_requests(directory, "test"))
    assert requests.keys() == {"A1", "A2"}
    # Training sees b1, b2, b3 of A2 and b5, b4, b3 of A1. b5 has no metadata.
    request = requests["A2"]
    assert request["history_item"] == ["b1", "b2", "b3", "b4"]
    assert request["history_category"] == ["Art", 'The "Best", Ever', "Books", "Art"]
    assert (request["item"], request["category"]) == (["b5"], [None])
    request = requests["A1"]
    assert request["history_category"] == [None, "Art", "Books", 'The "Best", Ever']
    assert (request["item"], request["category"]) == (["b1"], ["Art"])
    schema = schema_lib.Schema.load(directory)
    assert [table.dtype for table in schema.tables] == ["string"] * 3
    assert PreparedDirectory(directory).report["books without category"] == 1
    assert PreparedDirectory(directory).report["sources"]["metadata"]["dropped"] == {
        "book without a review": {"rows": 1, "places": ["meta_Books.json:5"]}
    }


def test_reviews_of_one_day_are_in_the_order_of_the_file(prepared, read_requests):
    content = [review("A1", book, time) for book, time in zip("gfedcba", [1] * 7, strict=True)]
    directory = prepared(content + reviews({"A2": "abcdefg"}), metadata(CATEGORIES))
    (request,) = [
        r for r in read_requests(directory, "validation") if r["user"] == "A1" and r["label"] == [1]
    ]
    assert (request["history_item"], request["item"]) == (["g", "f", "e", "d", "c"], ["b"])


def test_bad_reviews_are_counted_with_their_lines(prepared, read_requests):
    bad = {
        "not JSON": [
            "",
            '{"reviewerID": "A1", "asin": "b1", "unixRev',
            b'{"asin": "\xff"}',
            "[" * 9999,
        ],
        "not JSON of fields by name": ["[1]", "null"],
        "no reviewerID": [review("", "b1", 1), review(None, "b1", 1), review("A\ud800", "b1", 1)],
        "no asin": [
            review("A1", 5, 1),
            review("A1", "b\0", 1),
            '{"reviewerID": "A1", "unixReviewTime": 1}',
        ],
        "no unixReviewTime": [review("A1", "b1", t) for t in (None, True, 1.5, "1", -1, 2**63)],
        "review repeated": [review("A2", "b2", DAY, overall=1.0)],
    }
    good = reviews(HISTORIES)
    content = [*good, *(line for lines in bad.values() for line in lines)]
    directory = prepared(content, metadata(CATEGORIES))
    source = PreparedDirectory(directory).report["sources"]["behaviors"]
    assert (source["read"], source["kept"]) == (len(content), len(good))
    assert {r: drop["rows"] for r, drop in source["dropped"].items()} == {
        reason: len(lines) for reason, lines in bad.items()
    }
    places = [f"reviews_Books_5.json:{number}" for number in (11, 12, 13, 14)]
    assert source["dropped"]["not JSON"]["places"] == places
    clean = prepared(good, metadata(CATEGORIES))
    assert read_requests(directory, "train") == read_requests(clean, "train")


def test_bad_metadata_is_counted_with_its_lines(prepared, read_requests):
    bad = {
        "not a Python literal": [
            "{'asin': 'b5', 'categories': [['Bo",
            "{'asin': 'b5', 'categories': open('x')}",
            b"{'asin': 'b5', 'title': '\xff'}",
        ],
        "not a Python literal of fields by name": ["['b5']"],
        "no asin": ["{'categories': [['Books']]}"],
        "no category": [
            "{'asin': 'b5'}",
            "{'asin': 'b5', 'categories': []}",
            "{'asin': 'b5', 'categories': [[]]}",
            "{'asin': 'b5', 'categories': [[5]]}",
            "{'asin': 'b5', 'categories': None}",
        ],
        "book without a review": ["{'asin': 'b6', 'categories': [['Books']]}"],
        "asin repeated": ["{'asin': 'b1', 'categories': [['Books', 'Cooking']]}"],
    }
    good = metadata({book: of_book for book, of_book in CATEGORIES.items() if book != "other"})
    content = [*good, *(line for lines in bad.values() for line in lines)]
    directory = prepared(reviews(HISTORIES), content)
    source = PreparedDirectory(directory).report["sources"]["metadata"]
    assert (source["read"], source["kept"]) == (len(content), len(good))
    assert {r: drop["rows"] for r, drop in source["dropped"].items()} == {
        reason: len(lines) for reason, lines in bad.items()
    }
    assert source["dropped"]["no asin"]["places"] == ["meta_Books.json:9"]
    clean = prepared(reviews(HISTORIES), good)
    assert read_requests(directory, "test") == read_requests(clean, "test")


def test_gzip_gives_the_same(tmp_path, prepared, digests):
    lines = {"reviews_Books_5.json": reviews(HISTORIES), "meta_Books.json": metadata(CATEGORIES)}
    directory = prepared(*lines.values())
    for name, of_file in lines.items():
        with gzip.open(tmp_path / f"{name}.gz", "wt") as file:
            file.write("\n".join(of_file))
    other = prepare(
        "amazon_books", raw_dir=tmp_path, data_dir=tmp_path / "gz", protocol="last_behaviors"
    )
    requests = {name: digest for name, digest in digests(directory).items() if "report" not in name}
    assert requests.items() <= digests(other).items()


def test_cut_off_gzip(tmp_path):
    whole = gzip.compress("\n".join(reviews(HISTORIES)).encode())
    (tmp_path / "reviews_Books_5.json.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "meta_Books.json").write_text("\n".join(metadata(CATEGORIES)))
    with pytest.raises(ValueError, match=r"damaged from here on .*\(reviews_Books_5\.json\.gz:"):
        prepare("amazon_books", raw_dir=tmp_path, data_dir=tmp_path / "data")


def test_missing_raw_files(tmp_path):
    for name in ("reviews_Books_5.json", "meta_Books.json"):
        with pytest.raises(
            FileNotFoundError, match=rf"{tmp_path} must hold {name} or .*jmcauley\.ucsd\.edu"
        ):
            prepare("amazon_books", raw_dir=tmp_path, data_dir=tmp_path / "data")
        (tmp_path / name).touch()


def test_real_sample(samples, tmp_path, read_requests):
    raw_dir = samples / "amazon_books"
    directory = prepare("amazon_books", raw_dir=raw_dir, data_dir=tmp_path)
    # An independent reading of the raw files, whose lines are in order of user and time.
    histories, categories = collections.defaultdict(list), {}
    with gzip.open(raw_dir / "reviews_Books_5.json.gz", "rt") as file:
        for line in file:
            texts = line.split('"')
            histories[texts[3]].append(texts[7])
    with gzip.open(raw_dir / "meta_Books.json.gz", "rt") as file:
        for line in file:
            texts = line.split("'")
            categories[texts[3]] = texts[-2]
    report = PreparedDirectory(directory).report
    assert report["books without category"] == 0
    assert report["sources"]["behaviors"]["kept"] == sum(map(len, histories.values())) == 20000
    splits = {name: read_requests(directory, name) for name in ("train", "validation", "test")}
    users = [request["group_id"] for requests in splits.values() for request in requests]
    # A positive and a negative of each user, in one split.
    assert set(collections.Counter(users).values()) == {2}
    assert len(users) == 2 * len(histories) == 2 * 1467
    for request in splits["train"]:
        *past, last = histories[request["user"]]
        assert request["history_item"] == past[-100:]
        assert request["history_category"] == [categories[book] for book in past[-100:]]
        assert (request["item"] == [last]) == (request["label"] == [1])
        assert request["category"] == [categories[request["item"][0]]]
    assert {request["user"] for request in splits["test"]} == {"?"}
