"""New logs encoded as a trained model knows them: `prepare --like`, `--grow`, `--forget`."""

import json

import numpy as np
import pytest
from commands import run
from small_specs import SPEC, changed

from tfrec_diffusion.datasets.preparation import Preparation, prepare
from tfrec_diffusion.datasets.vocabularies import Vocabulary
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import PreparedDirectory
from tfrec_diffusion.schema import Schema

SPEC = changed(
    SPEC,
    impressions__join=[{"files": "items*", "on": "item"}],
    tables__price={"kind": "number"},
    tables__age={"kind": "boundaries", "buckets": 2},
    tables__item={"kind": "vocabulary", "dtype": "int64", "min_count": 2},
    features__price={"group": "candidate", "column": "price", "table": "price"},
    features__age={"group": "candidate", "column": "age", "table": "age"},
)
ITEMS = "item,price,age\n" + "".join(f"{i},{i},{i}\n" for i in range(1, 10))
# Until 3 May, item 1 is last seen on 1 May, items 2 and 3 on 2 May. Item 4 occurs once.
FIRST = {
    "impressions.csv": (
        "user,ts,item,shop,click\n"
        "ann,2024-05-01,1,s,1\nann,2024-05-01,1,s,0\nann,2024-05-02,2,s,1\nann,2024-05-02,3,t,1\n"
        "ann,2024-05-02,4,t,1\nann,2024-05-04,2,t,1\nann,2024-05-06,9,u,1\n"
    ),
    "behaviors.csv": (
        "user,ts,item,shop\nann,2024-05-01,1,s\nann,2024-05-02,2,s\nann,2024-05-02,3,s\n"
    ),
}
# On 7 May, 5 is new and comes three times, 6 twice, 7 once.
SECOND = {
    "impressions.csv": "user,ts,item,shop,click\n"
    + "".join(f"bob,2024-05-07,{item},v,1\n" for item in (3, 5, 5, 6, 7, 1)),
    "behaviors.csv": "user,ts,item,shop\nbob,2024-05-06,5,v\nbob,2024-05-06,6,w\n",
}
MAY_7 = {"train_from": "2024-05-07", "train_until": "2024-05-08"}


def write(directory, files):
    directory.mkdir()
    for name, content in {**files, "items.csv": ITEMS}.items():
        (directory / name).write_text(content)
    (directory / "shop.json").write_text(json.dumps(SPEC))
    return {
        "raw_dir": directory,
        "spec": str(directory / "shop.json"),
        "preparation": Preparation(max_bad_rows=1),
    }


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The first days' data, which stand for a model that was trained on them."""
    directory = tmp_path_factory.mktemp("first")
    raw = write(directory / "raw", FIRST)
    return prepare("logs", data_dir=directory, history_length=7, **raw)


@pytest.fixture
def second(tmp_path):
    raw = write(tmp_path / "raw", SECOND)
    return lambda **options: prepare(
        "logs", data_dir=tmp_path / f"data{len(list(tmp_path.iterdir()))}", **raw, **options
    )


def items(directory):
    return Vocabulary.load(Schema.load(directory), "item").values.tolist()


def test_the_first_days(known):
    assert items(known) == [1, 2, 3]
    days = Vocabulary.load(Schema.load(known), "item").last_seen
    assert [str(np.datetime64(int(day), "D")) for day in days] == ["2024-05-01"] + [
        "2024-05-02"
    ] * 2


def test_rows_are_the_models(known, second):
    directory = second(like=known, **MAY_7)
    old, new = Schema.load(known), Schema.load(directory)
    assert new.digest() == old.digest()
    assert new.history_length == old.history_length == 7
    # Means and boundaries, too, which would be others by the new day alone.
    assert new.table("price") == old.table("price") and new.table("age") == old.table("age")


def test_new_values_are_out_of_vocabulary_and_told(known, second):
    directory = second(like=known, **MAY_7)
    batch = next(RequestData(directory).batches("train").as_numpy_iterator())
    assert sorted(batch[0]["item"][:, 0]) == [1, 1, 1, 1, 2, 4]
    report = PreparedDirectory(directory).report
    assert report["item: values that the model does not know"] == {"without a row": 2}
    assert list(report["splits"]) == ["train"]


def test_grown_vocabularies(known, second):
    """Values that come often enough are appended, the most frequent first."""
    directory = second(like=known, grow=True, **MAY_7)
    assert items(directory) == [1, 2, 3, 5, 6]
    report = PreparedDirectory(directory).report
    assert report["item: values that the model does not know"] == {
        "new": 2, "in rows of forgotten values": 0, "all": 5
    }  # fmt: skip
    days = Vocabulary.load(Schema.load(directory), "item").last_seen
    # 1 and 3 were seen again.
    assert [str(np.datetime64(int(day), "D"))[-2:] for day in days] == [
        "07",
        "02",
        "07",
        "07",
        "07",
    ]


def test_forgotten_values_give_their_rows_away(known, second):
    """2 was not seen since 2 May: five days before the 8th, the end of training, is the 3rd."""
    directory = second(like=known, grow=True, forget=5, **MAY_7)
    assert items(directory) == [1, 5, 3, 6]
    report = PreparedDirectory(directory).report
    assert report["item: values that the model does not know"]["in rows of forgotten values"] == 1
    assert items(second(like=known, grow=True, forget=6, **MAY_7)) == [1, 2, 3, 5, 6]


def test_what_was_seen_is_taken_down_without_growth(known, second):
    days = Vocabulary.load(Schema.load(second(like=known, **MAY_7)), "item").last_seen
    assert [str(np.datetime64(int(day), "D"))[-2:] for day in days] == ["07", "02", "07"]


def test_only_values_of_the_last_tier_are_forgotten():
    """Rows 2 and 3 are of popular values; of the others, 4 was not seen for longest."""
    known = Vocabulary(
        "item", "int64", [7, 8, 9, 6], tiers=(4,), last_seen=np.array([1, 2, 30, 20])
    )
    grown, new, taken = known.grown([5, 4], [2, 1], [40, 40], forget_before=35)
    assert (grown.values.tolist(), new, taken) == ([7, 8, 4, 5], 2, 2)
    assert grown.last_seen.tolist() == [1, 2, 40, 40]


def test_of_an_older_vocabulary_nothing_is_forgotten_at_once():
    known = Vocabulary("item", "int64", [7, 8])
    with pytest.raises(ValueError, match="last seen, which older versions have not written"):
        known.grown([5], [1], [40], forget_before=35)
    grown, *_ = known.grown([5], [1], [40])
    assert grown.last_seen.tolist() == [40, 40, 40]


def test_a_day_has_the_behaviors_before_it(known, second):
    directory = second(like=known, grow=True, **MAY_7)
    batch = next(RequestData(directory).batches("train").as_numpy_iterator())
    # Bob's of 6 May, before the start of training: items 5 and 6.
    assert batch[0]["history_item"][0, :2].tolist() == [5, 6]


def test_impressions_before_the_start_are_left_out(known, second):
    with pytest.raises(ValueError, match="no split of logs got a request"):
        second(like=known, train_from="2024-05-07T12:00:00", train_until="2024-05-08")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grow": True}, "`grow` and `forget` need `like`"),
        ({"like": True, "forget": 3}, "`forget` needs `grow`"),
        ({"like": True, "train_from": "2024-05-09"}, "a time after train_from=2024-05-09"),
    ],
)
def test_wrong_options(known, second, options, message):
    if "like" in options:
        options = {**options, "like": known}
    with pytest.raises(ValueError, match=message):
        second(**options)


def test_a_spec_that_means_something_else(known, tmp_path):
    raw = write(tmp_path / "raw", SECOND)
    spec = changed(SPEC, tables__shop={"kind": "hash", "dtype": "string", "buckets": 3})
    (tmp_path / "raw" / "shop.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=f"that {known} was trained with.* differ in table 'shop'"):
        prepare("logs", data_dir=tmp_path, like=known, **raw)


def test_the_command(known, tmp_path):
    raw = write(tmp_path / "raw", SECOND)
    arguments = [
        "prepare", "--dataset=logs", f"--set=spec={raw['spec']}", f"--raw_dir={raw['raw_dir']}",
        f"--data_dir={tmp_path}", "--set=train_from=2024-05-07", "--set=train_until=2024-05-08",
        "--max_bad_rows=1", f"--like={known}", "--grow", "--forget=5",
    ]  # fmt: skip
    code, _, stderr = run(*arguments)
    assert code == 0, stderr
    assert items(tmp_path / "logs" / "shop" / "1.2.0") == [1, 5, 3, 6]
    code, _, stderr = run("prepare", "--dataset=taobao", f"--data_dir={tmp_path}", "--like=x")
    assert code == 2 and "like" in stderr
