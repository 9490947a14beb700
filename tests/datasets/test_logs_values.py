"""Columns of `logs` with several values, numbers and vectors; weights and further labels."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import small_specs

from tfrec_diffusion import schema as schema_lib
from tfrec_diffusion.datasets.logs_spec import Spec
from tfrec_diffusion.datasets.preparation import Preparation, describe, prepare
from tfrec_diffusion.input_pipeline import RequestData
from tfrec_diffusion.prepared_directory import PreparedDirectory

ANY_ROWS = Preparation(max_bad_rows=1)
ITEM = {"group": "candidate", "column": "item", "table": "item"}
SPEC = small_specs.changed(
    small_specs.SPEC,
    impressions__files="impressions.*",
    impressions__join=[{"files": "items.*", "on": "item"}],
    behaviors__join=[{"files": "items.*", "on": "item"}],
    tables__shop=None,
    tables__tag={"kind": "vocabulary", "dtype": "string"},
    tables__price={"kind": "number"},
    tables__image={"kind": "vector", "width": 2},
    tables__likes={"kind": "vocabulary", "dtype": "int64"},
    tables__hour={"kind": "number"},
    features={
        "user": {"group": "user", "column": "user", "table": "user"},
        "likes": {"group": "user", "column": "likes", "table": "likes", "values": 2},
        "hour": {"group": "context", "column": "hour", "table": "hour"},
        "item": ITEM,
        "tags": {**ITEM, "column": "tags", "table": "tag", "values": 3},
        "price": {**ITEM, "column": "price", "table": "price"},
        "image": {**ITEM, "column": "image", "table": "image"},
        "history_item": {**ITEM, "group": "history"},
        "history_tags": {
            "group": "history", "column": "tags", "table": "tag", "values": 3
        },
        "history_price": {"group": "history", "column": "price", "table": "price"},
        "history_image": {"group": "history", "column": "image", "table": "image"},
    },
)  # fmt: skip
changed = functools.partial(small_specs.changed, SPEC)

# 1, 2, 3 May train, 4 May validates, 6 May tests.
IMPRESSIONS = """\
user,ts,item,click,likes,hour,counts,bought
ann,2024-05-01,1,1,7|8,1,1,0
ann,2024-05-02,2,0,7|8,,0.5,0
bob,2024-05-02,3,0,,3,2,1
bob,2024-05-04,1,1,9,5,1,1
ann,2024-05-06,1,1,8|7|6,1000,4,0
"""
BEHAVIORS = """\
user,ts,item
ann,2024-04-28,1
ann,2024-04-29,2
ann,2024-04-30,3
"""
ITEMS = """\
item,tags,price,image
1,red|blue,10,0.5|-1
2, blue | |NULL,,1|2|3
3,red|green|blue|black,30,
"""


def prepare_tables(directory, spec=SPEC, preparation=ANY_ROWS, **files):
    """Prepares the tables above, or others in their place."""
    tables = {"impressions": IMPRESSIONS, "behaviors": BEHAVIORS, "items": ITEMS, **files}
    for name, table in tables.items():
        if isinstance(table, pd.DataFrame):
            table.to_parquet(directory / f"{name}.parquet")
        else:
            (directory / f"{name}.csv").write_text(table)
    (directory / "shop.json").write_text(json.dumps(spec))
    return prepare(
        "logs",
        raw_dir=directory,
        data_dir=directory / "data",
        spec=str(directory / "shop.json"),
        preparation=preparation,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Directory of the requests of the tables above, for tests that only read."""
    return prepare_tables(tmp_path_factory.mktemp("logs"))


def read(directory, split="train", label=""):
    """The requests of a split by user and label: features, label, weight."""
    data = RequestData(directory, label=label)
    batch = next(data.batches(split, 100).as_numpy_iterator())
    features, labels, weights = batch
    order = np.lexsort((labels[:, 0], features["user"]))
    features = {name: values[order] for name, values in features.items()}
    return features, labels[order], weights[order]


def values_of(directory, table, rows):
    """Raw values of rows of a vocabulary, without padding."""
    schema = schema_lib.Schema.load(directory)
    with open(schema.vocabulary_path(schema.table(table))) as file:
        values = file.read().split("\n")
    return [values[row - schema_lib.FIRST_INDEX] for row in rows.ravel() if row]


class TestSeveralValues:
    def test_in_every_group(self, directory):
        features, labels, _ = read(directory)
        # Of ann's, the first is item 2, which was not clicked, and the second item 1.
        np.testing.assert_array_equal(labels[:, 0], [0, 1, 0])
        assert features["tags"].shape == (3, 1, 3)
        tags = [values_of(directory, "tag", rows) for rows in features["tags"]]
        assert tags == [["blue"], ["red", "blue"], ["red", "green", "blue"]]
        assert values_of(directory, "likes", features["likes"][0]) == ["7", "8"]
        assert not features["likes"][2].any()
        history = [values_of(directory, "tag", rows) for rows in features["history_tags"][0]]
        assert [tags for tags in history if tags] == [tags[1], tags[0], tags[2]]

    def test_more_than_are_used_are_told(self, directory):
        report = PreparedDirectory(directory).report
        cut = "has more values than the"
        assert report[f"impressions join items.*: tags {cut} 3 that are used"] == 1
        assert report[f"impressions: likes {cut} 2 that are used"] == 1

    def test_black_is_in_no_row_and_thus_in_no_vocabulary(self, directory):
        schema = schema_lib.Schema.load(directory)
        with open(schema.vocabulary_path(schema.table("tag"))) as file:
            # Counted in the training impressions and behaviors, the most frequent first.
            assert file.read().split() == ["blue", "red", "green"]

    @pytest.mark.parametrize(
        ("separator", "tags"),
        [
            (",", ['"red,blue"', '"blue,,NULL"', '"red,green,blue,black"']),
            (",", ["\"['red', 'blue']\"", '"[""blue""]"', '"[red,green,blue,black]"']),
            (" ", ["red blue", " blue ", "[red  green blue black]"]),
            ("; ", ["red; blue", "blue", "red; green; blue; black"]),
        ],
        ids=["commas", "Python's and JSON's lists", "blanks", "two characters"],
    )
    def test_separators(self, tmp_path, directory, separator, tags):
        items = "item,tags,price,image\n" + "".join(
            f"{i},{of_item},,\n" for i, of_item in enumerate(tags, 1)
        )
        spec = changed(
            features__tags__separator=separator, features__history_tags__separator=separator
        )
        other = prepare_tables(tmp_path, spec, items=items)
        for name in ("tags", "history_tags"):
            np.testing.assert_array_equal(read(other)[0][name], read(directory)[0][name])

    def test_lists_in_parquet(self, tmp_path, directory):
        items = pd.DataFrame(
            {
                "item": [1, 2, 3],
                "tags": [["red", "blue"], ["blue", "", None], ["red", "green", "blue", "black"]],
                "price": [10, None, 30],
                "image": [[0.5, -1.0], [1.0, 2.0, 3.0], None],
            }
        )
        other = prepare_tables(tmp_path, items=items)
        for name, values in read(directory)[0].items():
            np.testing.assert_array_equal(read(other)[0][name], values, err_msg=name)

    def test_what_is_no_integer_is_left_out_and_told(self, tmp_path):
        impressions = IMPRESSIONS.replace("7|8", "7|x|8.0|-1", 1)
        directory = prepare_tables(tmp_path, impressions=impressions)
        # The request of 1 May.
        assert values_of(directory, "likes", read(directory)[0]["likes"][1]) == ["7", "8"]
        report = PreparedDirectory(directory).report
        wrong = "has values that are not integers of 64 bits, left out"
        assert report[f"impressions: likes {wrong}"] == 1
        assert report["impressions: likes has -1, taken for missing"] == 1

    def test_that_no_history_has_any(self, tmp_path):
        """Nobody has done anything, so that histories have no rows at all."""
        directory = prepare_tables(tmp_path, behaviors="user,ts,item\nzoe,2024-04-28,1\n")
        features, *_ = read(directory)
        assert not features["history_tags"].any() and not features["history_image"].any()


class TestNumbers:
    def test_are_as_they_stand(self, directory):
        features, *_ = read(directory)
        np.testing.assert_array_equal(features["price"][:, 0], [np.nan, 10, 30])
        np.testing.assert_array_equal(features["hour"], [np.nan, 1, 3])
        np.testing.assert_array_equal(features["history_price"][0, :3], [10, np.nan, 30])

    def test_are_standardized_by_training(self, directory):
        schema = schema_lib.Schema.load(directory)
        # 10 and 30 of the impressions, and of the behaviors. The hour 1000 is one of the test.
        price, hour = schema.table("price"), schema.table("hour")
        assert (price.mean, price.deviation) == pytest.approx((20, 10))
        assert (hour.mean, hour.deviation) == pytest.approx((2, 1))

    def test_that_are_all_alike(self, tmp_path):
        items = "item,tags,price,image\n1,,0.1,\n2,,0.1,\n3,,0.1,\n"
        price = schema_lib.Schema.load(prepare_tables(tmp_path, items=items)).table("price")
        assert (price.mean, price.deviation) == (pytest.approx(0.1), 1)


class TestVectors:
    def test_of_another_width_are_missing(self, directory):
        features, *_ = read(directory)
        nothing = [np.nan, np.nan]
        np.testing.assert_array_equal(features["image"][:, 0], [nothing, [0.5, -1], nothing])
        np.testing.assert_array_equal(features["history_image"][0, 0], [0.5, -1])
        note = "impressions join items.*: image not a vector of its table's width"
        # An empty one is missing, and not told.
        assert PreparedDirectory(directory).report[f"{note}, taken for missing"] == 1

    def test_are_scaled_by_their_root_mean_square(self, directory):
        image = schema_lib.Schema.load(directory).table("image")
        assert (image.mean, image.deviation) == (0, pytest.approx(np.sqrt(1.25 / 2)))

    def test_with_a_number_that_is_none(self, tmp_path):
        items = ITEMS.replace("0.5|-1", "0.5|x").replace("1|2|3", "1|inf")
        directory = prepare_tables(tmp_path, items=items)
        assert np.isnan(read(directory)[0]["image"]).all()


class TestWeights:
    def test_of_each_impression(self, tmp_path):
        directory = prepare_tables(tmp_path, changed(impressions__weight="counts"))
        _, _, weights = read(directory)
        np.testing.assert_array_equal(weights[:, 0], [0.5, 1, 2])
        report = PreparedDirectory(directory).report
        assert report["splits"]["train"]["means"] == {schema_lib.WEIGHT: 1.166667}
        assert any("mean impression weight" in line for line in describe(report))

    def test_of_the_candidates_of_one_request(self, tmp_path):
        spec = changed(impressions__weight="counts", impressions__request="page")
        impressions = (
            "user,ts,item,click,likes,hour,counts,page\n"
            "ann,2024-05-01,1,1,,,3,a\n"
            "ann,2024-05-01,2,0,,,0.5,a\n"
            "ann,2024-05-04,2,0,,,1,b\n"
            "ann,2024-05-06,2,0,,,1,c\n"
        )
        by_request = Preparation(group_by="request")
        directory = prepare_tables(tmp_path, spec, by_request, impressions=impressions)
        _, labels, weights = read(directory)
        assert (labels.tolist(), weights.tolist()) == ([[1, 0]], [[3, 0.5]])

    def test_of_zero_leave_out_and_of_less_are_wrong(self, tmp_path):
        lines = [
            "ann,2024-05-01,1,1,,,0,0",
            "ann,2024-05-01,1,1,,,-1,0",
            "ann,2024-05-01,1,1,,,,0",
            "ann,2024-05-01,1,1,,,inf,0",
        ]
        impressions = IMPRESSIONS + "".join(f"{line}\n" for line in lines)
        directory = prepare_tables(
            tmp_path, changed(impressions__weight="counts"), impressions=impressions
        )
        dropped = PreparedDirectory(directory).report["sources"]["impressions"]["dropped"]
        assert {reason: drop["rows"] for reason, drop in dropped.items()} == {
            "counts is 0": 1,
            "counts is no weight of at least 0": 3,
        }


class TestLabels:
    def test_one_is_read(self, tmp_path):
        spec = changed(
            impressions__labels={"bought": {"column": "bought"}}, impressions__weight="counts"
        )
        directory = prepare_tables(tmp_path, spec)
        bought, clicked = read(directory, label="bought"), read(directory)
        # The same impressions, of bob first and ann's in any order.
        assert bought[1].sum() == 1 and bought[0]["item"][bought[1] == 1] == clicked[0]["item"][2]
        assert clicked[1].sum() == 1
        assert bought[2].sum() == clicked[2].sum() == 3.5
        report = PreparedDirectory(directory).report
        assert report["splits"]["train"]["means"]["label bought"] == 0.333333
        with pytest.raises(ValueError, match=r"must be one of \['bought'\].*Received: 'sold'"):
            RequestData(directory, label="sold")

    def test_of_values_that_are_positive(self, tmp_path):
        ratings = {"rated": {"column": "hour", "positive": ["3", "1"]}}
        spec = changed(impressions__labels=ratings, features__hour=None, tables__hour=None)
        directory = prepare_tables(tmp_path, spec)
        # That of 2 May has none, and is dropped.
        assert read(directory, label="rated")[1].tolist() == [[1], [1]]
        dropped = PreparedDirectory(directory).report["sources"]["impressions"]["dropped"]
        assert dropped["no value of hour"]["rows"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features__item__values": 2}, "must have one value that is looked up"),
        ({"tables__image__width": 0}, "'tables.image.width' must be positive for .* It is: 0"),
        ({"tables__price__width": 3}, "'tables.price.width' must be .* 0 for others. It is: 3"),
        ({"features__price__values": 2}, "'price' must have one value, as it is numeric"),
        ({"features__tags__separator": ""}, "'features.tags.separator' must be a text. It is: ''"),
        ({"behaviors__weight": "w"}, "'behaviors.weight' must stand in 'impressions'"),
        ({"impressions__labels": {"a b": {"column": "x"}}}, "must be of letters.*'a b'"),
        ({"tables__tag__dtype": ""}, "`dtype` of a vocabulary table must be one of"),
    ],
    ids=["key", "no width", "width", "numbers", "separator", "weight", "label", "dtype"],
)  # fmt: skip
def test_wrong_specs(tmp_path, changes, message):
    (tmp_path / "shop.json").write_text(json.dumps(changed(**changes)))
    with pytest.raises(ValueError, match=message):
        Spec.load(tmp_path / "shop.json")


def test_one_column_of_two_types(tmp_path):
    spec = changed(features__tags__separator=",")
    with pytest.raises(ValueError, match="column 'tags' of behaviors must .* have one separator"):
        prepare_tables(tmp_path, changed(**{"features__two": {
            "group": "history", "column": "tags", "table": "tag", "values": 3, "separator": ","
        }}))  # fmt: skip
    # Each table of events has separators of its own.
    assert Spec.load(_written(tmp_path, spec))


def test_a_list_is_no_key(tmp_path):
    spec = changed(impressions__request="likes")
    with pytest.raises(ValueError, match="column 'likes' of impressions must have one value"):
        prepare_tables(tmp_path, spec)


def _written(directory, spec):
    path = directory / "spec.json"
    path.write_text(json.dumps(spec))
    return path
