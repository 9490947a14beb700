import bisect
import collections
import functools
import gzip
import pathlib

import numpy as np
import pytest

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets import tables
from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.prepared_directory import PreparedDirectory

ANY_ROWS = Preparation(max_bad_rows=1)
# Midnights in China (UTC+8).
MAY_6, MAY_12, MAY_13 = 1494000000, 1494518400, 1494604800
APRIL_22, MAY_14 = 1492790400, 1494691200

SAMPLE = f"""\
user,time_stamp,adgroup_id,pid,nonclk,clk
7,{MAY_6 + 100},501,430548_1007,0,1
3,{MAY_6 + 50},500,430539_1007,1,0
3,{MAY_6 + 3600},501,430548_1007,1,0
3,{MAY_12 - 1},502,430548_1007,0,1
3,{MAY_12},500,430548_1007,1,0
3,{MAY_13 - 1},509,430548_1007,0,1
7,{MAY_13},500,430539_9999,0,1
9,{MAY_14 - 1},501,430548_1007,1,0
"""
# Ad 502 has no brand, ad 509 no row.
ADS = """\
adgroup_id,cate_id,campaign_id,customer,brand,price
500,20,1,11,30,10.0
501,21,2,12,31,199.5
502,22,3,11,NULL,10.0
"""
# User 7 has two empty columns, user 9 no row.
PROFILES = """\
userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,\
new_user_class_level 
3,0,5,2,4,1,3,0,2
7,61,6,1,5,,3,1,
"""
BEHAVIORS = f"""\
user,time_stamp,btag,cate,brand
3,{MAY_6 + 49},pv,21,31
3,{MAY_6 - 1800},buy,20,30
7,{APRIL_22},cart,24,39
3,{MAY_6 + 50},pv,20,31
3,{MAY_6 + 49},pv,20,39
3,{MAY_12},fav,23,38
9,{MAY_14 - 2},pv,20,30
9,{MAY_14 - 1},pv,21,31
4,{MAY_6},pv,20,30
"""
FILES = {
    "raw_sample.csv": SAMPLE,
    "ad_feature.csv": ADS,
    "user_profile.csv": PROFILES,
    "behavior_log.csv": BEHAVIORS,
}


def prepare_files(
    directory, opener=open, suffix="", *, min_count=1, preparation=ANY_ROWS, **changes
):
    raw_dir = directory / f"raw{len(list(directory.iterdir()))}"
    raw_dir.mkdir()
    for file, content in FILES.items():
        content = changes.pop(file.removesuffix(".csv"), content)
        with opener(raw_dir / (file + suffix), "wt") as stream:
            stream.write(content)
    return prepare(
        "alibaba",
        raw_dir=raw_dir,
        data_dir=f"{raw_dir}_data",
        preparation=preparation,
        min_count=min_count,
        **changes,
    )


@pytest.fixture
def prepared(tmp_path):
    """`prepared(name=content, **options)`: directory of the requests of hand-written files."""
    return functools.partial(prepare_files, tmp_path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Directory of the requests of the files above, for tests that only read."""
    return prepare_files(tmp_path_factory.mktemp("alibaba"))


@pytest.fixture
def read(read_requests):
    """`read(directory, split)`: requests by user and ad."""

    def by_user_and_ad(directory, split):
        requests = read_requests(directory, split)
        found = {(r["group_id"], *r["adgroup_id"]): r for r in requests}
        assert len(found) == len(requests)
        return found

    return by_user_and_ad


def pairs(request):
    return list(zip(request["history_cate"], request["history_brand"], strict=True))


def reasons(directory, source):
    dropped = PreparedDirectory(directory).report["sources"][source]["dropped"]
    return {reason: drop["rows"] for reason, drop in dropped.items()}


def test_worked_out_by_hand(directory, read):
    assert directory.parts[-2:] == ("alibaba", "1.0.0")
    train = read(directory, "train")
    assert train.keys() == {(7, 501), (3, 500), (3, 501), (3, 502)}
    # Prices of training are 10, 10, 199.5 and 199.5: two intervals.
    assert schema_lib.Schema.load(directory).table("price").boundaries == (199.5,)
    assert train[7, 501] == {
        "label": [1.0],
        "group_id": 7,
        "user": 7,
        "cms_segid": 61,
        "cms_group_id": 6,
        "final_gender_code": 1,
        "age_level": 5,
        "pvalue_level": None,
        "shopping_level": 3,
        "occupation": 1,
        "new_user_class_level": None,
        "adgroup_id": [501],
        "cate_id": [21],
        "campaign_id": [2],
        "customer": [12],
        "brand": [31],
        "price": [3],
        "pid": "430548_1007",
        "history_cate": [24],
        "history_brand": [39],
        "history_gap": [0],
        # 1,209,700 seconds or 20,161.7 minutes, at or above 1, 2, .. 16,384: 15 boundaries.
        "history_age": [17],
    }
    assert train[3, 502]["new_user_class_level"] == 2
    assert train[3, 502]["cms_segid"] == 0
    assert (train[3, 502]["brand"], train[3, 502]["price"]) == ([None], [2])
    # The behavior at 50 s is no history of the impression at 50 s. Two are at 49 s: by category.
    assert train[3, 500]["label"] == [0.0]
    assert pairs(train[3, 500]) == [(20, 30), (20, 39), (21, 31)]
    assert pairs(train[3, 501]) == pairs(train[3, 502]) == [(20, 30), (20, 39), (21, 31), (20, 31)]
    # The first is 1849 seconds older than the next, 30.8 minutes: another session.
    assert train[3, 501]["history_gap"] == [0, 3, 2, 2]
    # 90, 59.18, 59.18 and 59.17 minutes.
    assert train[3, 501]["history_age"] == [9, 8, 8, 8]
    assert train[3, 500]["history_age"] == [7, 2, 2]


def test_days_part_at_midnight_in_china(prepared, directory, read):
    # Ad 509 is in no training impression.
    assert read(directory, "validation").keys() == {(3, 500), (3, "?")}
    assert read(directory, "test").keys() == {(7, 500), (9, 501)}
    # A second later two impressions are in the next split, and training knows no ad 502.
    sample = SAMPLE.replace(f"{MAY_12 - 1}", f"{MAY_12}").replace(f"{MAY_13 - 1}", f"{MAY_13}")
    later = prepared(raw_sample=sample)
    assert read(later, "train").keys() == {(7, 501), (3, 500), (3, 501)}
    assert read(later, "validation").keys() == {(3, 500), (3, "?")}
    assert read(later, "test").keys() == {(7, 500), (9, 501), (3, "?")}


def test_an_ad_and_a_user_without_a_row(directory, read):
    request = read(directory, "validation")[3, "?"]
    assert (request["user"], request["occupation"], request["label"]) == (3, 0, [1.0])
    assert request["cate_id"] == request["brand"] == request["customer"] == [None]
    assert request["price"] == [0]
    request = read(directory, "test")[9, 501]
    assert request["user"] == "?"
    assert request["cms_segid"] is request["occupation"] is request["age_level"] is None
    assert (request["cate_id"], request["price"]) == ([21], [3])
    assert pairs(request) == [(20, 30)]


def test_vocabularies_see_no_later_day(prepared, directory, read):
    schema = schema_lib.Schema.load(directory)
    # Category 23 and brand 38 come on 12 May, pid 430539_9999 and user 9 on 13 May.
    later = read(directory, "test")
    assert later[7, 500]["pid"] == "?"
    lines = {
        table.name: pathlib.Path(schema.vocabulary_path(table)).read_text().split()
        for table in schema.tables
        if table.kind == "vocabulary"
    }
    # Category 20: once as an ad's, four times as a behavior's; 21: 2 + 1; 22 and 24 once.
    assert lines["cate_id"] == ["20", "21", "22", "24"]
    # 31: 2 + 2; 30: 1 + 2; 39: 0 + 2.
    assert lines["brand"] == ["31", "30", "39"]
    assert lines["user"] == ["3", "7"]
    assert lines["adgroup_id"] == ["501", "500", "502"]
    # Of four impressions two are of ad 501: half of them is the first tier.
    assert schema.table("adgroup_id").tiers == (3,)
    # What changes on later days changes no vocabulary.
    other = prepared(
        raw_sample=SAMPLE + f"8,{MAY_12 + 5},502,x,0,1\n8,{MAY_13 + 5},502,y,0,1\n",
        behavior_log=BEHAVIORS + f"3,{MAY_12 + 1},pv,40,41\n",
    )
    assert schema_lib.Schema.load(other).digest() == schema.digest()


def test_label_rate_of_each_day_in_china(directory):
    splits = PreparedDirectory(directory).report["splits"]
    # The impressions of 12 May are its first and its last second.
    assert {split: report["days"] for split, report in splits.items()} == {
        "train": {
            "2017-05-06": {"candidates": 3, "clicks": 1},
            "2017-05-11": {"candidates": 1, "clicks": 1},
        },
        "validation": {"2017-05-12": {"candidates": 2, "clicks": 1}},
        "test": {"2017-05-13": {"candidates": 2, "clicks": 1}},
    }


def test_training_on_the_validation_day(prepared, read, read_requests):
    directory = prepared(train_on_validation=True)
    assert len(read_requests(directory, "train")) == 6
    assert read(directory, "validation").keys() == {(3, 500), (3, 509)}
    assert len(read_requests(directory, "test")) == 2
    # Category 23 is of a behavior on 12 May.
    assert "23" in (directory / "vocabularies" / "cate_id.txt").read_text().split()
    with pytest.raises(ValueError, match="`train_on_validation` must be True or False.*=1"):
        prepared(train_on_validation=1)


def test_min_count(prepared, read_requests):
    train = read_requests(prepared(min_count=2), "train")
    assert sorted((r["group_id"], r["user"]) for r in train) == [(3, 3)] * 3 + [(7, "?")]
    # Training sees ad 501 twice, 500 and 502 once.
    assert sorted(str(*r["adgroup_id"]) for r in train) == ["501", "501", "?", "?"]


def test_history_keeps_the_newest(prepared, read):
    train = read(prepared(history_length=2), "train")
    # What there is no room for is a previous behavior nevertheless.
    assert pairs(train[3, 500]) == [(20, 39), (21, 31)]
    assert train[3, 500]["history_gap"] == [3, 2]
    assert pairs(train[3, 501]) == [(21, 31), (20, 31)]
    assert train[3, 501]["history_age"] == [8, 8]


def test_repeated_behaviors_count_once(prepared, read):
    line = BEHAVIORS.splitlines()[1]
    directory = prepared(behavior_log=f"{BEHAVIORS}{line}\n{line}\n{line.replace('pv', 'cart')}\n")
    # The same moment, category and brand, but put into the cart: another behavior.
    pairs_ = pairs(read(directory, "train")[3, 500])
    assert pairs_ == [(20, 30), (20, 39), (21, 31), (21, 31)]
    assert reasons(directory, "behavior_log") == {"repeated": 2}


def test_the_order_of_the_log_does_not_matter(prepared, directory, digests):
    header, *lines = BEHAVIORS.splitlines(keepends=True)
    other = prepared(behavior_log=header + "".join(lines[::-1]))
    assert digests(other) == digests(directory)


def test_equal_times_of_impressions(prepared, read):
    first = f"3,{MAY_6 + 50},500,430539_1007,1,0\n"
    train = read(
        prepared(
            raw_sample=SAMPLE.replace(first, first + first.replace("500", "502")).replace(
                f"3,{MAY_12 - 1},502", f"3,{MAY_12 - 1},503"
            )
        ),
        "train",
    )
    assert pairs(train[3, 502]) == pairs(train[3, 500]) == [(20, 30), (20, 39), (21, 31)]


def test_bad_rows_are_counted_with_line_or_content(prepared, directory, digests):
    behaviors = [
        f"3,{APRIL_22 - 1},pv,20,30",
        f"3,{MAY_14},pv,20,30",
        "3,-2082668290,pv,20,30",
        "3,,pv,20,30",
        f"3,{MAY_6},pv,,30",
        f",{MAY_6},pv,20,30",
        f"3,{MAY_6},like,20,30",
        f"3,{MAY_6},pv,x,30",
        f"3,{MAY_6},pv,20,30,1",
        f"3,{MAY_6},pv",
    ]
    impressions = [
        f"3,{MAY_6 - 1},500,430539_1007,1,0",
        f"3,{MAY_14},500,430539_1007,1,0",
        f",{MAY_6},500,430539_1007,1,0",
        f"3,{MAY_6},,430539_1007,1,0",
        f"3,{MAY_6},500,430539_1007,1,1",
        f"3,{MAY_6},500,430539_1007,-1,2",
        f"3,{MAY_6},500,430539_1007,,",
        f"3,{MAY_6},500,430539_1007,1,zero",
        f"3,{MAY_6},500,4305",
    ]
    with_bad_rows = prepared(
        raw_sample=SAMPLE + "\n".join(impressions),
        ad_feature=ADS + ",20,1,11,30,10.0\n501,29,2,12,39,1.0\n505,1\n",
        user_profile=PROFILES + "x,0,5,2,4,1,3,0,2\n3,9,9,9,9,9,9,9,9\n",
        behavior_log=BEHAVIORS + "\n".join(behaviors),
    )
    report = PreparedDirectory(with_bad_rows).report
    assert {name: (s["read"], s["kept"]) for name, s in report["sources"].items()} == {
        "raw_sample": (17, 8),
        "ad_feature": (6, 3),
        "user_profile": (4, 2),
        "behavior_log": (19, 9),
    }
    assert reasons(with_bad_rows, "raw_sample") == {
        "clk is not a number": 1,
        "too few columns": 1,
        "no user or adgroup_id": 2,
        "time outside 6 to 13 May 2017 (UTC+8)": 2,
        "clk neither 0 nor 1, or nonclk not the other": 3,
    }
    assert reasons(with_bad_rows, "ad_feature") == {
        "too few columns": 1,
        "no adgroup_id": 1,
        "adgroup_id repeated": 1,
    }
    assert reasons(with_bad_rows, "user_profile") == {
        "userid is not a number": 1,
        "userid repeated": 1,
    }
    assert reasons(with_bad_rows, "behavior_log") == {
        "cate is not a number": 1,
        "too few columns": 1,
        "too many columns": 1,
        "no user or cate": 2,
        "time outside 22 April to 13 May 2017 (UTC+8)": 4,
        "btag none of pv, fav, cart, buy": 1,
    }
    dropped = report["sources"]["behavior_log"]["dropped"]
    assert dropped["too few columns"]["places"] == ["behavior_log.csv:20"]
    assert dropped["too many columns"]["places"] == ["behavior_log.csv:19"]
    assert report["ad_feature: brand not a number, taken for missing"] == 1
    assert report["raw_sample: ad without a row in ad_feature"] == 1
    assert report["raw_sample: user without a row in user_profile"] == 1
    # The usable rows give the same as alone.
    one, other = digests(directory), digests(with_bad_rows)
    assert one.pop("report.json") != other.pop("report.json")
    assert one == other


def test_the_last_profile_column_without_its_blank(prepared, directory, digests):
    other = prepared(user_profile=PROFILES.replace("level \n", "level\n"))
    assert digests(other) == digests(directory)


def test_a_missing_column_is_named(prepared):
    with pytest.raises(ValueError, match=r"user_profile\.csv must have a column 'occupation'"):
        prepared(user_profile=PROFILES.replace("occupation", "job"))


def test_gzip_and_plain_give_the_same_bytes(prepared, directory, digests):
    assert digests(prepared(gzip.open, ".gz")) == digests(directory)


def test_too_many_bad_rows(prepared):
    repeated = "".join(BEHAVIORS.splitlines(keepends=True)[1:])
    strict = Preparation(max_bad_rows=0)
    # What the log repeats is no bad row.
    directory = prepared(behavior_log=BEHAVIORS + repeated, preparation=strict)
    assert reasons(directory, "behavior_log") == {"repeated": 9}
    message = r"behavior_log: 1 of 10 rows are bad, .*: no user or cate \(behavior_log\.csv:11 "
    with pytest.raises(ValueError, match=message):
        prepared(behavior_log=f"{BEHAVIORS},{MAY_6},pv,20,30\n", preparation=strict)


@pytest.mark.parametrize("file", FILES)
def test_missing_raw_file(tmp_path, file):
    for name in FILES.keys() - {file}:
        (tmp_path / name).write_text(FILES[name])
    match = rf"must hold {file} or {file}\.gz, from https://tianchi\.aliyun\.com/dataset/56"
    with pytest.raises(FileNotFoundError, match=match):
        prepare("alibaba", raw_dir=tmp_path, data_dir=tmp_path / "data")


def test_parts_of_users_make_no_difference(prepared, directory, digests, monkeypatch):
    monkeypatch.setattr(tables.Database, "part_rows", 2)
    assert digests(prepared()) == digests(directory)


def test_random_files_against_a_plain_loop(prepared, read_requests, monkeypatch):
    rng = np.random.default_rng(0)
    # Moments a tenth of a day apart, so that many are equal.
    moments = np.arange(APRIL_22, MAY_14, 8640)
    behaviors = [
        (
            int(rng.integers(20)),
            int(rng.choice(moments)),
            int(rng.integers(5)),
            int(rng.integers(4)),
        )
        for _ in range(1500)
    ]
    impressions = [
        (int(rng.integers(25)), int(rng.choice(moments[moments >= MAY_6])), 500 + i)
        for i in range(300)
    ]
    monkeypatch.setattr(tables.Database, "part_rows", 200)
    directory = prepared(
        raw_sample="user,time_stamp,adgroup_id,pid,nonclk,clk\n"
        + "".join(f"{user},{time},{ad},p,1,0\n" for user, time, ad in impressions),
        ad_feature=ADS.splitlines()[0]
        + "\n"
        + "".join(f"{a},9,1,1,1,1\n" for *_, a in impressions),
        behavior_log="user,time_stamp,btag,cate,brand\n"
        + "".join(f"{u},{t},pv,{c},{b}\n" for u, t, c, b in behaviors),
        history_length=20,
    )
    histories = collections.defaultdict(list)
    for user, *behavior in sorted(set(behaviors)):
        histories[user].append(behavior)
    expected = collections.Counter()
    for user, time, _ in impressions:
        past = [behavior for behavior in histories[user] if behavior[0] < time][-20:]
        ages = [2 + bisect.bisect([2**n for n in range(20)], (time - b[0]) / 60) for b in past]
        split = ["train", "validation", "test"][(time >= MAY_12) + (time >= MAY_13)]
        expected[
            split, user, *((c, b, age) for (_, c, b), age in zip(past, ages, strict=True))
        ] += 1
    found = collections.Counter(
        (
            split,
            r["group_id"],
            *zip(r["history_cate"], r["history_brand"], r["history_age"], strict=True),
        )
        for split in ("train", "validation", "test")
        for r in read_requests(directory, split)
    )
    assert found == expected
