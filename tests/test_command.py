"""What all commands share: flags, settings, errors in one line, answers at once."""

import subprocess
import sys

import pytest
from commands import run

from tfrec_diffusion import command

COMMANDS = ("prepare", "train", "evaluate", "export", "inspect", "compare", "tune")


def test_flags_are_answered_before_tensorflow_is_imported():
    """That takes seconds."""
    program = f"""
import importlib, sys
from tfrec_diffusion import command, flags
for name in {COMMANDS} + ("serving.stand_in",):
    module = importlib.import_module(f"tfrec_diffusion.{{name}}")
    define = getattr(flags, name, None) or module.define_flags
    for argument in ("--help", "--wrong=1"):
        try:
            command.run(module.main, define, [name, argument])
        except SystemExit as stop:
            assert stop.code == (0 if argument == "--help" else 2), stop.code
    assert not {{"tensorflow", "keras", "pandas", "matplotlib"}} & sys.modules.keys(), name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Unknown command line flag 'wrong'") == len(COMMANDS) + 1


def test_help_lists_models_and_data_sets():
    code, stdout, _ = run("train", "--help")
    assert code == 0
    assert "din" in stdout and "taobao" in stdout and stdout.count("--batch_size") == 1


def test_flag_files_nest(tmp_path):
    (tmp_path / "inner.flags").write_text("# a comment\n--model=dinn\n")
    (tmp_path / "outer.flags").write_text(f"--flagfile={tmp_path}/inner.flags\n--dataset=synthetic")
    code, _, stderr = run(
        "train", f"--flagfile={tmp_path}/outer.flags", f"--model_dir={tmp_path}/model"
    )
    assert code == 2
    assert stderr.startswith("error: flag --model=dinn: value should be one of <avg_pooling|can|")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--bach_size=3"), "Unknown command line flag 'bach_size'"),
        (("train", "--batch_size=many"), "flag --batch_size=many"),
        (("train", "--batch_size=0"), "flag --batch_size=0"),
        (("train", "--flagfile=not/there.flags"), "not/there.flags"),
        (("train", "--dataset=synthetic"), "--model_dir"),
        (("train", "--dataset=taobao", "--model_dir=x", "--data_dir=no"), "no prepared data set"),
        (("train", "--dataset=taobao", "--model_dir=x", "--set=unit=3"), "tower_units=(200, 80)"),
        (("train", "--dataset=taobao", "--model_dir=x", "extra"), "Received: extra"),
        (("train", "--dataset=taobao", "--model_dir=x", "--set=dtype=float16"), "--set takes"),
        (("train", "--dataset=taobao", "--model_dir=x", "--set=activation={[]:1}"), "no prepared"),
        (("evaluate", "--model_dir=not/there"), "not/there/model.keras is missing"),
        (("export", "--model_dir=not/there", "--export_dir=x"), "not/there/model.keras is missing"),
        (("prepare", "--dataset=tabao"), "value should be one of <alibaba|amazon_books|"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    code, stdout, stderr = run(*arguments)
    assert code == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and message in stderr
    assert stdout == ""


def settings_of(function, *assignments):
    return command.settings(assignments, function)


def test_settings_are_python_literals_or_text():
    def receiver(schema, units=(1,), share=0.5, kind="a", dtype=None, **kwargs):
        pass

    found = settings_of(receiver, "units=80,40", "share=None", "kind=b c")
    assert found == {"units": (80, 40), "share": None, "kind": "b c"}
    for wrong in ("schema=1", "dtype=float16", "unit=3", "units"):
        with pytest.raises(ValueError, match=r"one of: units=\(1,\), share=0\.5, kind='a'\. Rec"):
            settings_of(receiver, wrong)


def test_control_c_ends_with_its_own_status():
    def main(values):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        command.run(main, lambda values: None, ["name"])
    assert stop.value.code == 130


def test_a_mistake_of_the_package_itself_shows_where():
    def main(values):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        command.run(main, lambda values: None, ["name"])
