"""Three ways to live with a new day's log, day by day on KuaiRand: retrain, train on, or stay.

    python tools/measure_days.py --raw_dir=raw/kuairand --work_dir=runs/days --model=din

Every model is measured on the day after the last that it has seen. `retrained` is trained from
nothing on all days so far; `trained on` is yesterday's model, which has taken one more day
(`experiments/daily.sh`); `as it is` is the first day's model. Seconds are those of all commands
that a day takes, one after the other on one machine. What is there is not computed again.
"""

import datetime
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

from tfrec_diffusion import command

_ROOT = pathlib.Path(__file__).parents[1]
_SPEC = _ROOT / "experiments" / "kuairand.json"


def define_flags(values):
    from absl import flags

    flags.DEFINE_string(
        "raw_dir", None, "directory of KuaiRand's files", required=True, flag_values=values
    )
    flags.DEFINE_string(
        "work_dir", None, "directory of data sets, runs and results", required=True,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("first", "2022-05-01", "last day of the first model", flag_values=values)
    flags.DEFINE_integer("days", 7, "days after it", 1, flag_values=values)
    flags.DEFINE_multi_string("flag", [], "a flag of `train`; repeat it", flag_values=values)
    flags.DEFINE_string("model", "din", "the model", flag_values=values)


def main(values):
    work = pathlib.Path(values.work_dir).absolute() / values.model
    work.mkdir(parents=True, exist_ok=True)
    first = datetime.date.fromisoformat(values.first)
    days = [first + datetime.timedelta(n) for n in range(values.days + 1)]
    flag_file = work / "train.flags"
    shared = f"--flagfile={_ROOT / 'experiments' / 'common' / 'training.flags'}"
    flag_file.write_text("\n".join([shared, f"--model={values.model}", *values.flag]) + "\n")
    found, path = {}, work / "days.json"
    if path.exists():
        found = json.loads(path.read_text())
    for day, tomorrow in itertools.pairwise(days):
        rows = found.setdefault(str(tomorrow), {})
        if "retrained" not in rows:
            rows["retrained"] = _retrained(values, work, flag_file, day, tomorrow)
        if "trained on" not in rows:
            if day == first:
                _daily(values, work, flag_file, day)
            seconds = _daily(values, work, flag_file, tomorrow)
            rows["trained on"] = _evaluated(work, day, tomorrow) | {"seconds": seconds}
        if "as it is" not in rows:
            rows["as it is"] = _evaluated(work, first, tomorrow)
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(_table(found))


def _run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    begun = time.perf_counter()
    subprocess.run(
        arguments, check=True, env=environment, cwd=_ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def _module(name, *arguments):
    return _run(sys.executable, "-m", f"tfrec_diffusion.{name}", *arguments)


def _retrained(values, work, flag_file, day, tomorrow):
    data_dir, run = work / "data" / f"until {day}", work / "runs" / f"until {day}"
    after = tomorrow + datetime.timedelta(1)
    seconds = _module(
        "prepare", "--dataset=logs", f"--raw_dir={values.raw_dir}", f"--data_dir={data_dir}",
        f"--set=spec={_SPEC}", f"--set=train_until={tomorrow}", f"--set=test_until={after}",
    )  # fmt: skip
    seconds += _module(
        "train", f"--flagfile={flag_file}", "--dataset=logs/kuairand", f"--data_dir={data_dir}",
        f"--model_dir={run}",
    )  # fmt: skip
    result = json.loads((run / "metrics.json").read_text())["splits"]["test"]
    return {name: result[name] for name in ("auc", "gauc", "log_loss")} | {"seconds": seconds}


def _daily(values, work, flag_file, day):
    environment = {
        "DAILY": work / "daily", "RAW": values.raw_dir, "SPEC": _SPEC, "FLAGS": flag_file
    }  # fmt: skip
    given = [f"{name}={value}" for name, value in environment.items()]
    path = f"PATH={pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return _run("env", path, *given, str(_ROOT / "experiments" / "daily.sh"), str(day))


def _evaluated(work, trained, day):
    from tfrec_diffusion.training.evaluation import evaluate
    from tfrec_diffusion.training.run_directory import RunDirectory

    model, data = RunDirectory(work / "daily" / "runs" / str(trained)).load_run(
        work / "daily" / "data" / str(day)
    )
    result = evaluate(model, data, "train", 256)
    return {name: result[name] for name in ("auc", "gauc", "log_loss")}


def _table(found):
    ways = ("retrained", "trained on", "as it is")
    lines = [
        f"| Day | {' | '.join(ways)} | seconds retrained | seconds trained on |",
        "|---" * (len(ways) + 3) + "|",
    ]
    for day, rows in found.items():
        aucs = " | ".join(f"{rows[way]['auc']:.4f}" for way in ways)
        seconds = " | ".join(f"{rows[way]['seconds']:.0f}" for way in ways[:2])
        lines.append(f"| {day} | {aucs} | {seconds} |")
    means = [sum(rows[way]["auc"] for rows in found.values()) / len(found) for way in ways]
    lines.append(f"| mean | {' | '.join(f'{mean:.4f}' for mean in means)} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, define_flags)
