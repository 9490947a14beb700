import math
import sys

import pytest
from finished_runs import finish, leave_metrics

from tfrec_diffusion.comparison.run import Run

RUN = "din dropout=0.2 --global_clipnorm=5"
FLAGS = ["--flagfile=a b.flags", "--epochs=2"]


def test_its_command_and_directory(tmp_path):
    run = Run(RUN, 3, FLAGS, tmp_path).having("--learning_rate=0.01")
    assert run.directory == tmp_path / "din_dropout=0.2_global_clipnorm=5_learning_rate=0.01_3"
    assert run.command == [
        *(sys.executable, "-m", "tfrec_diffusion.train", "--flagfile=a b.flags", "--epochs=2"),
        *("--model=din", "--set=dropout=0.2", "--global_clipnorm=5", "--learning_rate=0.01"),
        *("--seed=3", f"--model_dir={run.directory}"),
    ]


def test_without_settings_they_are_those_of_the_flags(tmp_path):
    run = Run("din", 0, FLAGS, tmp_path)
    assert run.having("") == run
    assert run.directory == tmp_path / "din_0"
    assert run.flags == [*FLAGS, "--model=din", "--seed=0", f"--model_dir={run.directory}"]


def test_names_of_directories_have_no_separators(tmp_path):
    run = Run("din --flagfile=experiments/diffumin/vae.flags", 0, [], tmp_path)
    assert run.directory == tmp_path / "din_flagfile=experiments_diffumin_vae.flags_0"


def test_arguments_may_be_quoted(tmp_path):
    run = Run("din 'activation=a b'", 0, [], tmp_path)
    assert run.flags[:2] == ["--model=din", "--set=activation=a b"]


class TestMetrics:
    def test_before_it_is_trained(self, tmp_path):
        run = Run(RUN, 0, FLAGS, tmp_path)
        assert run.metrics is None and not run.is_finished

    def test_of_the_finished_run(self, tmp_path):
        run = Run(RUN, 0, FLAGS, tmp_path)
        finish(run, 0.71, test=0.72)
        assert run.is_finished and run.metrics["splits"]["test"]["auc"] == 0.72
        assert run.validation_auc == 0.71
        assert run.result == "validation AUC 0.7100, 7 s"

    def test_of_a_split_of_one_class(self, tmp_path):
        run = Run(RUN, 0, FLAGS, tmp_path)
        finish(run, None)
        assert math.isnan(run.validation_auc) and run.result == "validation AUC nan, 7 s"

    @pytest.mark.parametrize("other", [["--epochs=1"], [*FLAGS, "--batch_size=8"], []])
    def test_of_other_flags_are_not_its_own(self, tmp_path, other):
        run = Run(RUN, 0, FLAGS, tmp_path)
        own = run.flags[len(FLAGS) :]
        leave_metrics(run.directory, [*other, *own], {"validation": 0.5})
        assert run.metrics is None and not run.is_finished
