"""The state of training: what was done so far, backed up whole or not at all, and restored to the exact step."""

import re
import shutil
import time
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np

from pipeline.training import watchdogs
from pipeline.training.schedules import learning_rate
from pipeline.utils import sealed
from pipeline.utils.atomic_files import finish_directory, write_text, writing
from pipeline.utils.errors import InputError
from serving.fingerprints import file_digest

# Within an epoch, a kill loses at most this much, and backups take at most this share of the time.
_SECONDS_BETWEEN_BACKUPS = 60
_SHARE_OF_TIME = 0.02

_FOLDER = re.compile(r"epoch-(\d{5,})(?:-step-(\d{7,}))?")
# What reading a damaged JSON file, archive or HDF5 file raises.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Record(keras.callbacks.Callback):
    """What was done so far, by this process and earlier ones; only the method's schedule comes before it.

    Attributes:
        steps: steps in an epoch.
        done: steps done since training began.
        is_stopped: whether the method's own schedule stopped training in the last epoch that is finished.
        history: name -> reported value, for each finished epoch.
        times: when each epoch was finished, in seconds since 1970.
        seconds: how long each epoch took, without what a kill lost; the first after a start also builds the graph.
        core_seconds: the same, summed over all cores.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps, self.done, self.is_stopped = steps, 0, False
        self.history, self.times, self.seconds, self.core_seconds = [], [], [], []
        self._metrics = []
        self._before, self._began = (0.0, 0.0), None

    @property
    def epoch(self):
        """How many epochs are finished."""
        return self.done // self.steps

    @property
    def step(self):
        """How many steps of the next epoch are done."""
        return self.done % self.steps

    def state(self):
        """The whole record as a JSON value."""
        # A float32 survives the conversion to Python's floats and JSON bit for bit.
        metrics = [variable.numpy().tolist() for variable in _metric_variables(self.model)] if self.step else []
        return {
            "done": self.done,
            "is_stopped": self.is_stopped,
            "history": self.history,
            "times": self.times,
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
            "seconds_of_this_epoch": self._elapsed() if self.step else (0.0, 0.0),
            "metrics": metrics,
            "seeds": [variable.numpy().tolist() for variable in _seed_variables(self.model)],
        }

    def restore(self, state, model):
        """Restores what `state` returned for such a model. Raises KeyError, TypeError or ValueError for others."""
        done, metrics = state["done"], state["metrics"]
        of_epochs = [state[name] for name in ("history", "times", "seconds", "core_seconds")]
        expected = len(_metric_variables(model)) if done % self.steps else 0
        if {len(values) for values in of_epochs} != {done // self.steps} or len(metrics) != expected:
            raise ValueError
        for variable, value in zip(_seed_variables(model), state["seeds"], strict=True):
            variable.assign(value)
        self.done, self.is_stopped, self._metrics = done, state["is_stopped"], metrics
        self.history, self.times, self.seconds, self.core_seconds = of_epochs
        wall, cores = state["seconds_of_this_epoch"]
        self._before = float(wall), float(cores)

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.monotonic(), time.process_time()
        if self._metrics:
            # Keras has just reset them.
            for variable, value in zip(_metric_variables(self.model), self._metrics, strict=True):
                variable.assign(value)
            self._metrics = []

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1

    def on_epoch_end(self, epoch, logs=None):
        # After the schedule, which may also have stopped it within the epoch: then the rest of it is left out.
        self.is_stopped = bool(self.model.stop_training)
        self.done += -self.done % self.steps
        values = {name: float(value) for name, value in logs.items()}
        self.history.append({**values, "learning_rate": learning_rate(self.model)})
        self.times.append(time.time())
        wall, cores = self._elapsed()
        self.seconds.append(wall)
        self.core_seconds.append(cores)
        self._before = (0.0, 0.0)

    def _elapsed(self):
        now = time.monotonic(), time.process_time()
        return tuple(before + end - began for before, end, began in zip(self._before, now, self._began, strict=True))


class Backup(keras.callbacks.Callback):
    """Keeps the last state, and the best model at an epoch's end: that with the highest smoothed training accuracy.

    A state is written after each epoch, and within one when a minute has passed. Its folder is renamed into place; only
    then is the previous one deleted. It carries a checksum of everything in it.

    Args:
        directory: where to write; each state has its own folder, with its model in `model.keras`.
        record: the `Record`, which comes before this callback.
    """

    def __init__(self, directory, record):
        super().__init__()
        self._directory, self._record = Path(directory), record
        self._next = time.monotonic() + _SECONDS_BETWEEN_BACKUPS

    def restore(self, model):
        """Restores a built and compiled model, and the record, to the last state, if there is one.

        Raises:
            InputError: if it cannot be read.
        """
        latest = self.latest()
        if latest is None:
            return
        try:
            state = sealed.loads((latest / "state.json").read_bytes())
            is_of_this_folder = _folder_name(*divmod(state["done"], self._record.steps)) == latest.name
            if not is_of_this_folder or state["model"] != file_digest(latest / "model.keras"):
                raise ValueError
            model.load_weights(latest / "model.keras")
            self._record.restore(state, model)
        except _UNREADABLE as error:
            before = [folder for folder in self._folders() if folder != latest]
            raise InputError(
                f"Cannot read the training backup {latest} ({type(error).__name__}); delete it to "
                + (f"resume from {max(before, key=_place)}." if before else "train again from the start.")
            ) from None

    def latest(self):
        """The folder of the last state, or None."""
        return max(self._folders(), key=_place, default=None)

    def best(self):
        """The folder of the best finished epoch (the last one on a tie), or None."""
        accuracies = [row["smoothed_accuracy"] for row in self._record.history]
        best = max(range(len(accuracies)), key=lambda i: (accuracies[i], i), default=None)
        folder = None if best is None else self._directory / _folder_name(best + 1, 0)
        return folder if folder in self._folders() else None

    def on_train_batch_end(self, batch, logs=None):
        if self._record.step and time.monotonic() >= self._next:
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        self._write()

    def _write(self):
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            raise watchdogs.diverged("weights that are not finite", self.model, self._record, self)
        started, latest = time.monotonic(), self.latest()
        folder = self._directory / _folder_name(self._record.epoch, self._record.step)
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with writing(folder, f"training resumes from {latest or 'its last backup, if there is one'}"):
                # Does not create the root, which may have been moved meanwhile.
                for path in (self._directory, unfinished):
                    path.mkdir(exist_ok=True)
                self.model.save(unfinished / "model.keras")
                state = {**self._record.state(), "model": file_digest(unfinished / "model.keras")}
                write_text(unfinished / "state.json", sealed.dumps(state))
                finish_directory(unfinished, folder)
        except InputError:
            # The incomplete files take room that others may need.
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for other in self._folders():
            if other not in (folder, self.best()):
                shutil.rmtree(other)
        now = time.monotonic()
        self._next = now + max(_SECONDS_BETWEEN_BACKUPS, (now - started) / _SHARE_OF_TIME)

    def _folders(self):
        return _folders_in(self._directory)


def done(directory, steps):
    """How many training steps the last state in a directory has done; `steps` make an epoch. 0 if there is none."""
    places = map(_place, _folders_in(Path(directory)))
    return max((epoch * steps + step for epoch, step in places), default=0)


def _folders_in(directory):
    return [path for path in directory.glob("epoch-*") if _FOLDER.fullmatch(path.name)]


def _place(folder):
    """How many epochs are finished in a state, and how many steps of the next are done."""
    epoch, step = _FOLDER.fullmatch(folder.name).groups(default="0")
    return int(epoch), int(step)


def _folder_name(epoch, step):
    """The name from which `_place` reads both."""
    return f"epoch-{epoch:05d}" + (f"-step-{step:07d}" if step else "")


def _metric_variables(model):
    """TensorFlow's variables of the model's metrics."""
    return _on_replicas(model, [variable for metric in model.metrics for variable in metric.variables])


def _seed_variables(model):
    """TensorFlow's variables by which layers such as Dropout draw anew in each step. No model's file has them."""
    weights = {id(variable) for variable in model.weights}
    return _on_replicas(model, [variable for variable in model.variables if id(variable) not in weights])


def _on_replicas(model, variables):
    """TensorFlow's variables behind Keras'; under a distribution strategy, each replica has its own."""
    local = model.distribute_strategy.experimental_local_results
    return [one for variable in variables for one in local(variable.value)]
