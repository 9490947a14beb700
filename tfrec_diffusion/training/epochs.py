"""One epoch for strategies that Keras 3 has no `fit` for: the same model, metrics and callbacks."""

import keras


def fit_epoch(model, epoch, steps, callbacks, executions, verbose):
    """What Keras's `fit` does for one epoch.

    Args:
        model: Compiled `RankingModel`.
        epoch: int. From 0.
        steps: int. Steps of this call.
        callbacks: list of `keras.callbacks.Callback`.
        executions: generator. Takes the steps and yields, now and then, the number done and the
            metrics.
        verbose: int. `1` shows a progress bar.
    """
    callbacks = keras.callbacks.CallbackList(
        callbacks, add_progbar=True, model=model, verbose=verbose, epochs=epoch + 1, steps=steps
    )
    model.reset_metrics()
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(epoch)
    for done, logs in executions:
        callbacks.on_train_batch_end(done - 1, logs)
    logs = model.get_metrics_result()
    callbacks.on_epoch_end(epoch, logs)
    callbacks.on_train_end(logs)


def chunks(first, last, size):
    """Cuts batches into chunks.

    Args:
        first: int. The first batch.
        last: int. The batch after the last.
        size: int. Batches of a chunk; the last one may be smaller.

    Yields:
        (first batch, number of batches) of each chunk.
    """
    for begin in range(first, last, size):
        yield begin, min(size, last - begin)
