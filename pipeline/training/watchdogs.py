"""What goes wrong in training, noticed and reported with what to try: divergence, and MACER's collapse."""

import keras
import numpy as np

from pipeline.training.schedules import learning_rate
from pipeline.utils.errors import InputError

# Window, in steps, and limits for collapse: accuracy as a multiple of chance, and share of correct images in the hinge.
# MNIST's and the digits' presets leave chance within 100 steps.
_WINDOW = 300
_OF_CHANCE = 1.5
_IN_HINGE = 0.2


def diverged(what, model, record, backup):
    """The `InputError` that reports divergence: where it was, which weights are kept, what to try."""
    epoch, step = divmod(record.done - 1, record.steps)
    last, best = backup.latest(), backup.best()
    if last is None:
        kept = "No weights have been kept yet."
    elif last == best:
        kept = f"The last good weights, also the best by smoothed training accuracy, are kept in {last}/model.keras."
    elif best is None:
        kept = f"The last good weights are kept in {last}/model.keras."
    else:
        kept = (
            f"The last good weights are kept in {last}/model.keras, the best by smoothed training accuracy in "
            f"{best}/model.keras."
        )
    advice = ["a lower learning_rate", "clip_norm=1"] + ["a smaller lam"] * bool(getattr(model, "lam", 0))
    return InputError(
        f"Training diverged: {what} at epoch {epoch + 1}, step {step + 1}, learning rate {learning_rate(model):g}. "
        f"{kept} Try {', '.join(advice[:-1])} or {advice[-1]}."
    )


class StopOnDivergence(keras.callbacks.Callback):
    """Stops training at the first step whose loss is not finite; `Backup` refuses weights that are not finite.

    Args:
        record: the `Record`, which comes before this callback.
        backup: the `Backup`, which comes after it.

    Raises:
        InputError: `diverged`.
    """

    def __init__(self, record, backup):
        super().__init__()
        self._record, self._backup = record, backup

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise diverged(f"loss {logs['loss']}", self.model, self._record, self._backup)


class TellOfCollapse(keras.callbacks.Callback):
    """Says once, in one line, that a `MACERModel` has collapsed to a constant prediction.

    After a collapse, the smoothed classifier is right no more often than chance, and where it is right, noisy copies
    agree beyond the hinge: the robustness term of Eq. (17) is almost 0 and has no gradient by which to leave this
    state. Training that starts slowly looks the same, but not for long; training that is nearly done has as little in
    the hinge, but is right.

    Args:
        chance: the accuracy that a constant prediction can reach: the share of the most frequent label.
        say: prints a line.
    """

    def __init__(self, chance, say):
        super().__init__()
        self._chance, self._say, self._said = chance, say, False
        self._window, self._steps = np.zeros(4), 0

    def on_epoch_begin(self, epoch, logs=None):
        self._counted = self._count()

    def on_train_batch_end(self, batch, logs=None):
        if self._said or self.model.lam == 0:
            return
        self._steps += 1
        if self._steps == _WINDOW:
            self._add()
            images, correct, in_hinge, robustness = self._window
            if correct <= _OF_CHANCE * self._chance * images and in_hinge <= _IN_HINGE * correct:
                self._tell(correct / images, robustness / images)
            self._window, self._steps = np.zeros(4), 0

    def on_epoch_end(self, epoch, logs=None):
        # Keras resets its metrics between epochs; lam is set at the start of each.
        if self.model.lam > 0:
            self._add()

    def _add(self):
        counted = self._count()
        self._window, self._counted = self._window + counted - self._counted, counted

    def _count(self):
        """For this epoch so far: images, correct ones, those in the hinge, and the sum of their robustness losses."""
        means = {metric.name: metric for metric in self.model.metrics}
        names = ("smoothed_accuracy", "hinge_fraction", "robustness_loss")
        sums = [means["loss"].count, *(means[name].total for name in names)]
        return np.array([float(np.array(variable)) for variable in sums])

    def _tell(self, accuracy, robustness):
        self._said = True
        self._say(
            f"  Training has collapsed to a constant prediction: over the last {_WINDOW} steps "
            f"the smoothed accuracy was {accuracy:.3f}, at chance level, and the robustness loss {robustness:.3f}. "
            "Stop it and try clip_norm=1, lam deferred by lam_start_epoch, or a larger batch_size."
        )
