import collections
import gzip
import itertools
import os

import numpy as np
import pytest

from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

ANY_ROWS = Preparation(max_bad_rows=1)
DAY_1 = 1511539200  # 25 November 2017, 00:00 in China
# Users in the order of their names as text, as in the true file. Categories are item / 10.
HISTORIES = {10: [20, 10, 21, 22, 11], 11: [30, 31, 32], 2: [10, 11, 12, 13, 14]}


def lines(histories):
    return [
        f"{user},{item},{item // 10},pv,{DAY_1 + time}"
        for user, items in histories.items()
        for time, item in enumerate(items)
    ]


@pytest.fixture
def prepared(tmp_path):
    """`prepared(lines, **options)`: directory of the requests made from lines of the raw file."""

    def make(lines, **options):
        raw_dir = tmp_path / f"raw{len(list(tmp_path.iterdir()))}"
        raw_dir.mkdir()
        (raw_dir / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
        arguments = {"raw_dir": raw_dir, "data_dir": f"{raw_dir}_data", **options}
        return prepare("taobao", preparation=ANY_ROWS, **arguments)

    return make


def positives(requests):
    """History and item of each user's positives."""
    found = {r["group_id"]: (r["history_item"], r["item"]) for r in requests if r["label"] == [1]}
    assert len(found) == len(requests) / 2
    return found


def test_bad_rows_are_counted_with_line_or_content(prepared, read_requests):
    content = lines({1: [1, 2, 3, 4, 5], 2: [5, 4, 3, 2, 1]})
    bad = [
        "1,x,1,pv,1511539300",
        ",7,1,pv,1511539300",
        "1,7,1,pv,1511539199",
        "1,7,1,pv,1512316800",
        "1,7,1,pv,",
        "1,7,1,pv,1511539300,9",
        "1,7,1,pv",
    ]
    directory = prepared(content[:3] + bad[:-1] + content[3:] + bad[-1:])
    (source,) = PreparedDirectory(directory).report["sources"].values()
    assert source["read"] == 17
    assert source["kept"] == 10
    reasons = {reason: drop["rows"] for reason, drop in source["dropped"].items()}
    assert reasons == {
        "item is not a number": 1,
        "too many columns": 1,
        "too few columns": 1,
        "no user, item or category": 1,
        "time outside 25 November to 3 December 2017 (UTC+8)": 3,
    }
    assert source["dropped"]["too few columns"]["places"] == ["UserBehavior.csv:17"]
    assert positives(read_requests(directory, "test"))[1] == ([1, 2, 3, 4], [5])


def test_gzip_gives_the_same(tmp_path, prepared, digests):
    directory = prepared(lines(HISTORIES))
    with gzip.open(tmp_path / "UserBehavior.csv.gz", "wt") as file:
        file.write("\n".join(lines(HISTORIES)))
    other = prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "gz")
    # The report names the file.
    requests = {name: digest for name, digest in digests(directory).items() if "report" not in name}
    assert requests.items() <= digests(other).items()


def test_missing_raw_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold UserBehavior\.csv .*tianchi"):
        prepare("taobao", raw_dir=tmp_path, data_dir=tmp_path / "data")
    assert not list(tmp_path.rglob("incomplete*"))


def test_file_without_usable_rows(prepared):
    with pytest.raises(ValueError, match=r"two distinct items.*time outside 25 November"):
        prepared(["1,1,1,pv,5"])


def test_a_lone_quote_swallows_no_lines(prepared):
    content = lines(HISTORIES)
    directory = prepared([*content[:3], '"1,2,3,pv,1511539300', *content[3:]])
    (source,) = PreparedDirectory(directory).report["sources"].values()
    assert (source["read"], source["dropped"]["user is not a number"]["rows"]) == (14, 1)


@pytest.fixture(scope="module")
def real_sample(samples, tmp_path_factory):
    """Directory of the requests of the real sample."""
    data_dir = tmp_path_factory.mktemp("real_sample")
    return prepare("taobao", raw_dir=samples / "taobao", data_dir=data_dir)


def test_unknown_items_do_not_tell_the_label_of_the_real_sample(real_sample, read_requests):
    for split in PreparedDirectory(real_sample).report["splits"]:
        requests = read_requests(real_sample, split)
        unknown = np.array([[item == "?" for item in r["item"]] for r in requests])
        labels = np.array([r["label"] for r in requests])
        assert unknown[labels == 1].mean() == unknown[labels == 0].mean(), split


def test_real_sample(samples, real_sample, read_requests):
    report = PreparedDirectory(real_sample).report
    dropped = report["sources"]["behaviors"]["dropped"]
    assert dropped["too few columns"] == {"rows": 1, "places": ["UserBehavior.csv.gz:84476"]}
    assert dropped["time outside 25 November to 3 December 2017 (UTC+8)"]["rows"] == 35
    assert {split: counts["requests"] for split, counts in report["splits"].items()} == {
        "train": 1628,
        "validation": 1628,
        "test": 1628,
        "test_popularity": 1628,
        "test_99": 814,
    }
    # An independent reading of the raw file, in Python.
    histories = collections.defaultdict(list)
    with gzip.open(samples / "taobao" / "UserBehavior.csv.gz", "rt") as file:
        for number, text in enumerate(file):
            fields = text.rstrip(os.linesep).split(",")
            if len(fields) == 5 and DAY_1 <= int(fields[4]) < DAY_1 + 9 * 86400:
                user, item, category, _, time = fields
                histories[int(user)].append((int(time), number, int(item), int(category)))
    histories = {u: sorted(history) for u, history in histories.items() if len(history) >= 4}
    seen = {item for history in histories.values() for *_, item, _ in history[:-2]}
    requests = [r for r in read_requests(real_sample, "test") if r["label"] == [1]]
    assert len(requests) == len(histories)
    for request in requests:
        *past, (time, _, item, category) = histories[request["group_id"]]
        past = [entry for entry in past if entry[0] < time]
        minutes = [(b[0] - a[0]) / 60 for a, b in itertools.pairwise(past)]
        gaps = [0, *(2 if gap < 30 else 3 for gap in minutes)]
        assert request["history_gap"] == gaps[-200:]
        past = past[-200:]
        # How many of the powers of two are not above: the number of binary digits.
        ages = [2 + ((time - earlier) // 60).bit_length() for earlier, *_ in past]
        assert request["history_age"] == ages
        assert request["item"] == [item if item in seen else "?"]
        assert request["category"] in ([category], ["?"])
        assert request["history_item"] == [i if i in seen else "?" for *_, i, _ in past]
