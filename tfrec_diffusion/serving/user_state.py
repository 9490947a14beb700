"""A model in two: what it makes of the user alone, and the scores of candidates from that."""

import keras


def split(model):
    """Cuts a model's graph where what is made of the user alone meets context and candidates.

    Layers and weights are the model's own. A layer that sees both sides is cut as well if it has
    a method `split`: it returns two layers, one of the positional arguments of the user alone, one
    of what that gave and of the others.

    Args:
        model: `RankingModel`.

    Returns:
        Two `keras.Model`s. The first takes the user, history and behavior features by name and
        returns the state, tensors by name. The second takes these together with the context and
        candidate features and returns the click probabilities.
    """
    inputs = {
        name: keras.Input(x.shape[1:], name=name, dtype=x.dtype) for name, x in model.input.items()
    }
    of_user = {f.name: inputs[f.name] for f in model.schema.group("user", "history", "behavior")}
    known = {id(x): x for x in of_user.values()}  # tensors of the user alone
    state = {}

    def keep(x):
        if id(x) in known and all(x is not kept for kept in state.values()):
            x.name = f"state_{len(state)}"
            state[x.name] = x

    def call(operation, *args, **kwargs):
        tensors = _tensors(args, kwargs)
        if all(id(x) in known for x in tensors):
            outputs = operation(*args, **kwargs)
            known.update({id(x): x for x in _tensors(outputs)})
            return outputs
        if hasattr(operation, "split") and not kwargs:
            of_user_alone, of_both = operation.split()
            result = call(of_user_alone, *(x for x in args if id(x) in known))
            return call(of_both, result, *(x for x in args if id(x) not in known))
        for x in tensors:
            keep(x)
        return operation(*args, **kwargs)

    whole = keras.models.clone_model(
        model, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
    )
    others = {name: x for name, x in inputs.items() if name not in of_user}
    return keras.Model(of_user, state), keras.Model({**state, **others}, whole.output)


def _tensors(*structure):
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]
