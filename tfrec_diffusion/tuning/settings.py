"""What flags say of a search's parameters: that they exist, and which values they have without."""

import inspect

from tfrec_diffusion import command, models
from tfrec_diffusion.tuning.parameters import ARGUMENT, Choice, Range

# Trials on other data or by other metrics cannot be compared, and each has its own directory.
_NOT_SEARCHED = ("dataset", "data_dir", "label", "best_by", "model_dir", "set", "flagfile")


def check(search, parse):
    """Checks that every value of a search is one of a flag or constructor argument that exists.

    Args:
        search: `Search`.
        parse: callable. As of `start.tune`.

    Raises:
        ValueError: If an argument does not exist, or a parameter is not to be searched.
        Exception: What `parse` raises on wrong flags.
    """
    values = _parse(search.flags, parse)
    searched = {parameter.name: parameter for parameter in search.parameters}
    for name in searched:
        if name in _NOT_SEARCHED:
            hint = "; write `set.<argument>`" if name == "set" else ""
            raise ValueError(f"{search.path}: {name} cannot be searched{hint}")
        if not name.startswith(ARGUMENT) and name not in values:
            raise ValueError(
                f"{search.path}: {name} is no flag of tfrec_diffusion.train; an argument of the "
                f"model is written {ARGUMENT}<argument>"
            )
    model_values = searched["model"].extremes if "model" in searched else [values.model]
    for model in model_values:
        for parameter in search.parameters:
            for value in parameter.extremes:
                flags = [*search.flags, f"--model={model}", *parameter.flags(value)]
                _parse(flags, parse)
            if isinstance(parameter, Range) and parameter.is_whole:
                found = _value(parameter.name, _parse([*search.flags, f"--model={model}"], parse))
                if isinstance(found, float):
                    raise ValueError(
                        f"{search.path}: {parameter.name} is a float; write its `low` as "
                        f"{float(parameter.low)}. Received: {parameter.low}"
                    )


def own(search, parse):
    """The values that a search's parameters have by its flags alone.

    Args:
        search: `Search`, checked.
        parse: callable. As of `start.tune`.

    Returns:
        Pair of a dict by name, and of a list of str: those that the search does not hold, as
        `name=value`. The dict lacks these.
    """
    values = _parse(search.flags, parse)
    params, others = {}, []
    for parameter in search.parameters:
        found = _value(parameter.name, values)
        if isinstance(parameter, Choice):
            same = [
                value
                for value in parameter.values
                if _value(parameter.name, _parse([*search.flags, *parameter.flags(value)], parse))
                == found
            ]
        else:
            same = [found] if parameter.holds(found) else []
        if same:
            params[parameter.name] = same[0]
        else:
            others.append(f"{parameter.name}={found}")
    return params, others


def all_values(search, parse):
    """The flags that all trials have, as far as they say, and the defaults of the others.

    Args:
        search: `Search`.
        parse: callable. As of `start.tune`.

    Returns:
        dict by name, with the dashes, of what JSON can hold.
    """
    values = _parse(search.flags, parse).flag_values_dict()
    return {f"--{name}": value for name, value in values.items() if name != "model_dir"}


def _parse(flags, parse):
    values = parse([*flags, "--model_dir=x"])
    command.settings(values.set, models.get(values.model))
    return values


def _value(name, values):
    """What parsed flags say of a parameter."""
    if not name.startswith(ARGUMENT):
        return values[name].value
    argument, model = name.removeprefix(ARGUMENT), models.get(values.model)
    default = inspect.signature(model).parameters[argument].default
    return command.settings(values.set, model).get(argument, default)
