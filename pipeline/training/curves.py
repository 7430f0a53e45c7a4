"""Training curves, written during training: `history.csv`, events for TensorBoard, and the time of each epoch."""

import contextlib
import csv
import io
import os
import shutil
import time

import keras
import tensorflow as tf

from pipeline.utils.atomic_files import write_text, writing


class Curves(keras.callbacks.Callback):
    """Writes a row per epoch to `history.csv`, to `seconds.csv` and to an event file for TensorBoard; all are complete
    at any moment. (The times are kept apart because they differ from run to run, and nothing else does.)

    What an earlier process reported is written again, from the record, before training continues. The step of an event
    is its epoch.

    Args:
        directory: where the first two are written.
        events: where the event file is, and no other; a folder that stays in place when training is finished.
        record: the `Record`, which comes before this callback.

    Raises:
        InputError: if they cannot be written.
    """

    def __init__(self, directory, events, record):
        super().__init__()
        self._directory, self._folder_of_events, self._record = directory, events, record
        with self._writing():
            self._events = self._open_events()
            if record.history:
                self._write_csv()

    def on_epoch_end(self, epoch, logs=None):
        with self._writing():
            self._write_csv()
            self._write_event(self._record.epoch)
            self._events.flush()

    def close(self):
        """Closes the event file."""
        with self._writing():
            self._events.close()

    @contextlib.contextmanager
    def _writing(self):
        with writing(f"the training curves in {self._directory}", "training resumes from its last backup"):
            try:
                yield
            except tf.errors.OpError as error:
                raise OSError(error.message) from None

    def _open_events(self):
        events = self._folder_of_events
        shutil.rmtree(events, ignore_errors=True)
        events.mkdir(parents=True)
        # Once it holds what was reported before, it is renamed to the name that TensorBoard looks for, and appended to.
        beside = events / "writing"
        self._events = tf.io.TFRecordWriter(str(beside))
        began = self._record.times[0] if self._record.times else time.time()
        self._events.write(tf.compat.v1.Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        for epoch in range(1, self._record.epoch + 1):
            self._write_event(epoch)
        self._events.flush()
        os.rename(beside, events / f"events.out.tfevents.{time.time():.0f}")
        return self._events

    def _write_event(self, epoch):
        values = self._record.history[epoch - 1].items()
        summary = tf.compat.v1.Summary(
            value=[tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in values]
        )
        event = tf.compat.v1.Event(wall_time=self._record.times[epoch - 1], step=epoch, summary=summary)
        self._events.write(event.SerializeToString())

    def _write_csv(self):
        record = self._record
        self._write_rows("history.csv", [*record.history[0]], [row.values() for row in record.history])
        times = zip(record.seconds, record.core_seconds, strict=True)
        self._write_rows("seconds.csv", ["seconds", "core_seconds"], times)

    def _write_rows(self, name, header, rows):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=os.linesep)
        writer.writerow(["epoch", *header])
        writer.writerows([epoch, *row] for epoch, row in enumerate(rows, start=1))
        write_text(self._directory / name, text.getvalue())
