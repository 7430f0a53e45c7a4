"""What training says live: how far it is, how it goes and how long it will take."""

import keras

from pipeline.cli.console import Progress


class TrainingProgress(keras.callbacks.Callback):
    """Says live how far training is, how it goes and how long it will take.

    Args:
        record: the `Record`, which comes before this callback.
        epochs: how many there will be.
    """

    def __init__(self, record, epochs):
        super().__init__()
        self._record, self._epochs, self._epoch = record, epochs, 0
        self._progress = Progress("Training", epochs * record.steps, record.done)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._progress.update(self._record.done, self._details(logs))

    def on_train_end(self, logs=None):
        # Training that goes on in the middle of an epoch has an end at this epoch's end too.
        if self._record.epoch == self._epochs:
            self._progress.finish(self._record.done, self._details(logs))

    def close(self):
        """Leaves the line as it is, however training ended."""
        self._progress.close()

    def _details(self, logs):
        terms = " + ".join(f"{value:.3f}" for name, value in logs.items() if name.endswith("_loss"))
        return (
            f"epoch {self._epoch + 1}/{self._epochs}, loss {logs['loss']:.3f} = {terms}, "
            f"smoothed accuracy {logs['smoothed_accuracy']:.3f}"
        )
