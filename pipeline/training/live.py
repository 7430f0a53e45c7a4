"""What is shown live during training: how far it is, how it goes and how long it will take."""

import itertools

import keras

from pipeline.cli import console


class TrainingProgress(keras.callbacks.Callback):
    """Shows live how far training is, how it goes and how long it will take.

    Args:
        record: the `Record`, which comes before this callback.
        epochs: how many there will be.
        work: called with an epoch, from 0; returns the work of a step in it, as a multiple of the first epoch's.
        cheaper: names of settings that would make it shorter, for `console.print_if_long`.
    """

    def __init__(self, record, epochs, work, cheaper):
        super().__init__()
        self._record, self._epochs, self._epoch, self._cheaper = record, epochs, 0, cheaper
        self._work, self._is_forecast = work, False
        # Work done before each epoch, and at the end.
        self._done_before = [0, *itertools.accumulate(record.steps * work(epoch) for epoch in range(epochs))]
        self._progress = console.Progress("Training", self._done_before[-1], self._done())

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        done = self._done()
        self._progress.update(done, self._details(logs))
        if not self._is_forecast and (speed := self._progress.speed(done)):
            self._is_forecast = True
            self._forecast((self._done_before[-1] - done) / speed)

    def on_train_end(self, logs=None):
        # Training that continued in the middle of an epoch also ends at this epoch's end.
        if self._record.epoch == self._epochs:
            self._progress.finish(self._done(), self._details(logs))
        elif self.model.stop_training:
            epoch = f"epoch {self._record.epoch} of {self._epochs}"
            print(f"  The method's own schedule stopped training after {epoch}.", flush=True)

    def _done(self):
        epoch = min(self._record.epoch, self._epochs)
        return self._done_before[epoch] + (self._record.step * self._work(epoch) if epoch < self._epochs else 0)

    def _forecast(self, seconds):
        steps = self._epochs * self._record.steps - self._record.done
        print(f"  To train: {steps:,} more steps, about {console.duration(seconds)}, measured just now.", flush=True)
        console.print_if_long(seconds, self._cheaper)

    def close(self):
        """Leaves the line as it is, however training ended."""
        self._progress.close()

    def _details(self, logs):
        terms = " + ".join(f"{logs[name]:.3f}" for name in self.model.LOSSES)
        return (
            f"epoch {self._epoch + 1}/{self._epochs}, loss {logs['loss']:.3f} = {terms}, "
            f"smoothed accuracy {logs['smoothed_accuracy']:.3f}"
        )
