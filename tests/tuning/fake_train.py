"""Stands for `python -m tfrec_diffusion.train`: same flags, files, lock and signals, no training.

The best learning rate is 0.01; above 0.5 it diverges, with 0.5 it is killed, with 0.0001 it takes
its time; each epoch adds a little. With a dropout above 0.5, it waits for a signal after each
epoch, though not long after the last one; while there is a file `hold` beside the run directories,
it waits, too. In a directory with a file `broken` it fails.
"""

import fcntl
import json
import math
import os
import pathlib
import signal
import sys
import time


def auc_of(learning_rate, dropout, epoch):
    return 0.8 - 0.05 * abs(math.log10(learning_rate / 0.01)) - 0.1 * dropout - 0.01 / epoch


def main(argv):
    flags, settings = {}, {}
    for argument in argv:
        name, _, value = argument.removeprefix("--").partition("=")
        if name == "set":
            name, _, value = value.partition("=")
            settings[name] = value
        else:
            flags[name] = value
    directory = pathlib.Path(flags["model_dir"])
    signal.signal(signal.SIGTERM, lambda *_: stop(directory))
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"error: another process is training in {directory}")
    learning_rate = float(flags.get("learning_rate", 0.001))
    with open(directory / "starts", "a") as file:
        file.write(f"{os.getpid()}\n")
    (directory / "checkpoints").mkdir(exist_ok=True)
    path = directory / "validation.json"
    by_epoch = json.loads(path.read_text()) if path.exists() else []
    epochs, dropout = int(flags.get("epochs", 1)), float(settings.get("dropout", 0))
    while len(by_epoch) < epochs:
        if learning_rate > 0.5:
            print("a warning", file=sys.stderr)
            sys.exit("error: the loss is inf at step 3: training has diverged")
        if (directory / "broken").exists():
            sys.exit("error: the disk is full")
        if learning_rate == 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        auc = auc_of(learning_rate, dropout, len(by_epoch) + 1)
        if settings.get("softmax") == "True":
            auc = None
        by_epoch.append({"auc": auc, "gauc": 0.5, "log_loss": 1 - (auc or 0)})
        write(path, by_epoch)
        if learning_rate == 0.0001:
            time.sleep(0.3)
        if dropout > 0.5:
            time.sleep(60 if len(by_epoch) < epochs else 0.3)
        while (directory.parent / "hold").exists():
            time.sleep(0.005)
    splits = {"validation": by_epoch[-1], "test": {"auc": 0.123456, "gauc": 0, "log_loss": 0}}
    write(directory / "metrics.json", {"splits": splits, "command": ["train.py", *argv]})


def write(path, value):
    aside = path.with_name(f"aside.{path.name}")
    aside.write_text(json.dumps(value))
    aside.replace(path)


def stop(directory):
    (directory / "stopped").touch()
    sys.exit(143)


if __name__ == "__main__":
    main(sys.argv[1:])
