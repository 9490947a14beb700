"""A stand-in for TF Serving's binary, which no package registry has, on Python's TensorFlow.

    python -m tfrec_diffusion.serving.stand_in --model=ranking=serving/din

It speaks the PredictionService (Predict and GetModelMetadata) and the ModelService (GetModelStatus)
over gRPC, and the same over REST, in rows (`instances`) or columns (`inputs`). Errors have the
codes of the real server. A version is refused if one of its warm-up requests fails. Unlike the real
server, it loads every version once, at the start; it does not batch, knows no labels, and checks
shapes before the model runs. It listens on the loopback address of this machine only, by default on
the ports of the real server.
"""

from absl import flags

from tfrec_diffusion import command


def define_flags(values):
    """Defines the flags of the command.

    Args:
        values: `absl.flags.FlagValues`. Where they are defined.
    """
    flags.DEFINE_multi_string(
        "model", None, "NAME=DIRECTORY of a model's versions; repeat it for other models",
        required=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("port", 8500, "port of gRPC; 0 takes a free one", flag_values=values)
    flags.DEFINE_integer("rest_port", 8501, "port of REST; 0 takes a free one", flag_values=values)


def main(values):
    """Serves until it is stopped.

    Args:
        values: `absl.flags.FlagValues`.
    """
    from tfrec_diffusion.serving.stand_in_server import StandIn

    models = dict(_name_and_directory(model) for model in values.model)
    with StandIn(models, values.port, values.rest_port) as server:
        print(f"gRPC {server.address}, REST {server.rest_address}", flush=True)
        server.wait()


def _name_and_directory(model):
    name, _, directory = model.partition("=")
    if not name or not directory:
        raise ValueError(f"`model` must be NAME=DIRECTORY. Received: model={model}")
    return name, directory


if __name__ == "__main__":
    command.run(main, define_flags)
