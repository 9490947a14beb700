import json
import math
import pathlib

import pytest

from tfrec_diffusion import command, flags, models
from tfrec_diffusion.tuning import search_file, settings
from tfrec_diffusion.tuning.parameters import Choice, Range

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
FILES = [str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("experiments/**/*search.json")]


def parse(arguments):
    return command.parsed(flags.train, arguments)


@pytest.fixture
def read(tmp_path):
    """Reads a search file that says this."""

    def read(says, more=()):
        path = tmp_path / "search.json"
        path.write_text(says if isinstance(says, str) else json.dumps(says))
        return search_file.read(path, more)

    return read


@pytest.fixture
def searching(read):
    """A search of these parameters of DIN, with further keys of the file."""

    def searching(search, *more, **others):
        given = {"flags": ["--dataset=synthetic", "--model=din"], "search": search, **others}
        return read(given, more)

    return searching


def test_what_a_file_says(read):
    search = read(
        {
            "comment": "a comment",
            "flags": ["--dataset=synthetic"],
            "pruner": "none",
            "search": {
                "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
                "set.tower_units": ["16,8", "32"],
            },
        },
        ["--epochs=3"],
    )
    assert search.flags == ["--dataset=synthetic", "--epochs=3"]
    assert (search.sampler, search.pruner) == ("tpe", "none")
    assert search.parameters == (
        Range("learning_rate", 1e-4, 1e-2, True),
        Choice("set.tower_units", ("16,8", "32")),
    )
    params = {"learning_rate": 0.003, "set.tower_units": "16,8"}
    assert search.flags_of(params) == ["--learning_rate=0.003", "--set=tower_units=16,8"]
    assert search.is_better(0.2, 0.1) and not search.is_better(0.1, 0.2)
    search = search._replace(metric="log_loss")
    assert search.is_better(0.1, 0.2) and not search.is_better(0.2, 0.1)


def test_null_leaves_a_flag_out_and_is_none_for_an_argument(searching):
    search = searching({"global_clipnorm": [None, 1.5], "set.max_length": [None, 5]})
    params = {"global_clipnorm": None, "set.max_length": None}
    assert search.flags_of(params) == ["--set=max_length=None"]


class TestCombinations:
    def test_values_steps_and_whole_numbers(self, searching):
        search = searching(
            {
                "epochs": {"low": 1, "high": 3},
                "set.dropout": {"low": 0.0, "high": 0.35, "step": 0.1},
                "set.softmax": [True, False],
            }
        )
        grids = [parameter.grid() for parameter in search.parameters]
        assert grids == [(1, 2, 3), (0.0, 0.1, 0.2, 0.3), (True, False)]
        assert search.size == len([*search.combinations()]) == 24
        first, second, *_ = search.combinations()
        assert first == {"epochs": 1, "set.dropout": 0.0, "set.softmax": True}
        assert second == {"epochs": 1, "set.dropout": 0.0, "set.softmax": False}

    def test_how_many_trials(self, searching):
        choice = {"epochs": [1, 2]}
        many = {"learning_rate": {"low": 0.1, "high": 0.2}}
        assert searching(many).size == math.inf
        assert searching(many).num_trials(None) == 30 and searching(many).num_trials(50) == 50
        assert searching(choice).num_trials(None) == 2
        grid = searching({"seed": {"low": 0, "high": 99}}, sampler="grid")
        assert grid.num_trials(None) == 100 and grid.num_trials(7) == 7


def test_a_drawn_number_has_four_digits_and_stays_in_the_range():
    assert Range("x", 0.0, 1.0).rounded(0.123456) == 0.1235
    assert Range("x", 0.00012344, 1.0, True).rounded(0.000123441) == 0.00012344
    assert Range("x", 0.0, 0.3, step=0.1).rounded(0.30000000000000004) == 0.3
    assert Range("x", 1, 9).rounded(5) == 5


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("{", "is not JSON"),
        ([], "needs `search`"),
        ({"flags": []}, "needs `search`"),
        ({"search": {}}, "needs `search`"),
        ({"search": {"epochs": [1, 2]}, "metric": "auc"}, "Received: ['metric']"),
        ({"search": {"epochs": [1, 2]}, "flags": "--epochs=1"}, "`flags` must be a list"),
        ({"search": {"epochs": [1, 2]}, "sampler": "random"}, "`sampler` must be one of"),
        ({"search": {"epochs": [1, 2]}, "pruner": ["median"]}, "`pruner` must be one of"),
        ({"search": {"epochs": 3}}, "epochs must have a list of values or a range"),
        ({"search": {"epochs": [1]}}, "epochs needs two or more different values"),
        ({"search": {"epochs": [1, 1]}}, "epochs needs two or more different values"),
        ({"search": {"epochs": [1, True]}}, "epochs needs two or more different values"),
        ({"search": {"epochs": [1, [2]]}}, "epochs needs two or more different values"),
        ({"search": {"epochs": {"low": 1}}}, "epochs needs a number `low` below"),
        ({"search": {"epochs": {"low": 3, "high": 3}}}, "epochs needs a number `low` below"),
        ({"search": {"epochs": {"low": True, "high": 3}}}, "epochs needs a number `low` below"),
        ({"search": {"epochs": {"low": 1, "high": 3, "logs": True}}}, "Received: ['logs']"),
        ({"search": {"epochs": {"low": 1, "high": 3, "log": 1}}}, "`log` must be true or false"),
        ({"search": {"epochs": {"low": 0, "high": 3, "log": True}}}, "`low` must be above 0"),
        ({"search": {"epochs": {"low": 1, "high": 3, "log": True, "step": 1}}}, "is no `step`"),
        ({"search": {"epochs": {"low": 1, "high": 3, "step": 0}}}, "`step` must be a number"),
        ({"search": {"epochs": {"low": 1, "high": 3, "step": 5}}}, "at least one step above"),
        (
            {"search": {"learning_rate": {"low": 0.1, "high": 0.2}}, "sampler": "grid"},
            "learning_rate needs a list of values or a `step` for a grid",
        ),
    ],
)
def test_a_wrong_file(read, says, message):
    with pytest.raises(ValueError) as wrong:
        read(says)
    assert message in str(wrong.value) and "search.json" in str(wrong.value)


class TestCheck:
    """That there is what is searched."""

    def check(self, searching, name, values, *more):
        settings.check(searching({name: values}, *more), parse)

    def test_all_is_well(self, searching):
        self.check(searching, "learning_rate", {"low": 0.1, "high": 0.5})
        self.check(searching, "set.dropout", {"low": 0.0, "high": 0.5})
        self.check(searching, "model", ["din", "diffumin"])
        self.check(searching, "global_clipnorm", [None, 1])

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("learning_rat", [1, 2], "learning_rat is no flag of tfrec_diffusion.train"),
            ("dropout", [0.1, 0.2], "dropout is no flag of tfrec_diffusion.train"),
            ("set.drop_out", [0.1, 0.2], "Received: --set=drop_out=0.1"),
            ("set.schema", [0.1, 0.2], "Received: --set=schema=0.1"),
            ("set", ["dropout=0.1", "dropout=0.2"], "set cannot be searched; write `set.<argum"),
            ("dataset", ["taobao", "synthetic"], "dataset cannot be searched"),
            ("best_by", ["auc", "gauc"], "best_by cannot be searched"),
            ("model_dir", ["a", "b"], "model_dir cannot be searched"),
            (
                "set.dropout",
                {"low": 0, "high": 1},
                "set.dropout is a float; write its `low` as 0.0",
            ),
            ("learning_rate", {"low": 1, "high": 2}, "learning_rate is a float; write"),
        ],
    )
    def test_a_wrong_name(self, searching, name, values, message):
        with pytest.raises(ValueError) as wrong:
            self.check(searching, name, values)
        assert message in str(wrong.value)

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("learning_rate", [0.1, "much"], "--learning_rate=much"),
            ("batch_size", {"low": 0, "high": 9}, "--batch_size=0"),
            ("model", ["din", "dinn"], "--model=dinn"),
        ],
    )
    def test_a_wrong_value(self, searching, name, values, message):
        with pytest.raises(Exception) as wrong:
            self.check(searching, name, values)
        assert message in str(wrong.value)

    def test_an_argument_of_every_model_searched(self, searching):
        search = {"model": ["diffumin", "din"], "set.channels": [2, 4]}
        with pytest.raises(ValueError) as wrong:
            settings.check(searching(search), parse)
        assert "Received: --set=channels=2" in str(wrong.value)


class TestOwn:
    """What the flags say of the parameters."""

    def test_flags_arguments_and_defaults(self, searching):
        search = searching(
            {
                "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
                "global_clipnorm": [None, 1],
                "set.tower_units": ["400,160", "200,80"],
                "set.softmax": [False, True],
                "set.dropout": {"low": 0.0, "high": 0.4, "step": 0.1},
            },
            *("--set=dropout=0.3", "--learning_rate=0.002", "--set=dropout=0.2"),
        )
        params, others = settings.own(search, parse)
        assert params == {
            "learning_rate": 0.002,
            "global_clipnorm": None,
            "set.tower_units": "200,80",
            "set.softmax": False,
            "set.dropout": 0.2,
        }
        assert others == []

    def test_those_that_are_not_searched(self, searching):
        search = searching(
            {
                "learning_rate": {"low": 0.1, "high": 0.2},
                "epochs": [1, 2],
                "set.max_length": {"low": 5, "high": 9},
                "set.dropout": {"low": 0.0, "high": 0.4, "step": 0.1},
            },
            "--set=dropout=0.15",
        )
        params, others = settings.own(search, parse)
        assert params == {"epochs": 1}
        assert others == ["learning_rate=0.001", "set.max_length=None", "set.dropout=0.15"]


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_experiments(file, schema, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    search = search_file.read(file)
    settings.check(search, parse)
    # The first trial can be what the flags say.
    own, others = settings.own(search, parse)
    assert others == []
    assert f"--search={file}" in json.loads(pathlib.Path(file).read_text())["comment"]
    # There is a model of every value.
    for parameter in search.parameters:
        for value in parameter.extremes:
            flags = search.flags_of({**own, parameter.name: value})
            values = parse([*search.flags, *flags, "--model_dir=x"])
            arguments = command.settings(values.set, models.get(values.model))
            models.create(values.model, schema=schema, **arguments)
