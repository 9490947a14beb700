"""What a training run leaves in its directory: its model, and which data it was trained on."""

import json
import pathlib

import keras

import tfrec_diffusion.models  # noqa: F401  registers the classes that a model file names
from tfrec_diffusion.input_pipeline import RequestData, find_prepared
from tfrec_diffusion.schema import Schema

MODEL_FILE = "model.keras"
FLAGS_FILE = "flags.json"
METRICS_FILE = "metrics.json"


def model_file(model_dir):
    """Path of the best checkpoint of a training run.

    Raises:
        FileNotFoundError: If `model_dir` holds none.
    """
    path = pathlib.Path(model_dir) / MODEL_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: expected a --model_dir that `python -m tfrec_diffusion.train` "
            "has finished an epoch in"
        )
    return path


def load_model(model_dir):
    """The best checkpoint of a training run.

    Raises:
        FileNotFoundError: As `model_file`.
    """
    return keras.models.load_model(model_file(model_dir), compile=False)


def load_run(model_dir, data_dir=None):
    """The best checkpoint of a training run, and the data set that it was trained on.

    Args:
        model_dir: Of `python -m tfrec_diffusion.train`.
        data_dir: Of prepared data sets; `None`: where the model was trained from.

    Returns:
        `RankingModel` and `RequestData`.

    Raises:
        FileNotFoundError: If there is no such run, or no such data set.
        ValueError: If the data set means something else than what was trained on.
    """
    model = load_model(model_dir)
    trained = json.loads((pathlib.Path(model_dir) / FLAGS_FILE).read_text())
    directory = find_prepared(data_dir or trained["data_dir"], trained["dataset"])
    data = RequestData(directory, model.schema.history_length)
    check_same_data(Schema.load(model_dir), data.schema)
    return model, data


def check_same_data(of_model, of_data):
    """Checks that a data set's requests mean what they meant in training.

    Args:
        of_model: `Schema` as the model directory has it.
        of_data: `Schema` of the data set.

    Raises:
        ValueError: If the schemas or vocabularies differ.
    """
    config = of_data.get_config()
    differing = [name for name, value in of_model.get_config().items() if value != config[name]]
    if not differing and of_model.digest() != of_data.digest():
        differing = ["vocabularies"]
    if differing:
        raise ValueError(
            f"{of_model.directory} was trained on other data than {of_data.directory}: "
            f"they differ in {', '.join(differing)}"
        )
