"""What changes during training: the learning rate, and the method's own hyper-parameters."""

import keras


class MACERSchedule(keras.callbacks.Callback):
    """Changes those settings of a `MACERModel` that differ between epochs, which are counted from 0.

    lam and the consistency term are 0 before epoch `start` (the paper's dynamic lam, Table 4) and then rise linearly
    over `ramp` epochs; with 0 epochs, at once. From each epoch in `rises` on, num_samples is `factor` times what it
    was.
    """

    def __init__(self, lam, start, ramp=0, num_samples=None, rises=(), factor=1):
        super().__init__()
        self._lam, self._start, self._ramp = lam, start, ramp
        self._num_samples, self._rises, self._factor = num_samples, rises, factor

    def on_epoch_begin(self, epoch, logs=None):
        share = min(1.0, max(0, epoch + 1 - self._start) / max(1, self._ramp))
        self.model.lam = self._lam * share
        self.model.consistency_share = share
        if self._rises:
            self.model.num_samples = self._num_samples * self._factor ** sum(epoch >= rise for rise in self._rises)


class WarmUp(keras.callbacks.Callback):
    """Raises the model's attribute `name` linearly to `value` over the first `epochs` epochs; with 0 epochs, at once.

    This is how the attack's epsilon of Salman et al. (2019) and the mixed images' weight of Jeong et al. (2021) rise.
    """

    def __init__(self, name, value, epochs):
        super().__init__()
        self._name, self._value, self._epochs = name, value, epochs

    def on_epoch_begin(self, epoch, logs=None):
        setattr(self.model, self._name, self._value * min(1.0, (epoch + 1) / max(1, self._epochs)))


def learning_rate(model):
    """The learning rate of the last step that the model's optimizer took; before any, that of the first."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        # Keras counts a step once it is done: the optimizer's own `learning_rate` is by then that of the next one.
        rate = rate(keras.ops.maximum(optimizer.iterations - 1, 0))
    return float(keras.ops.convert_to_numpy(rate))


def schedule(settings, steps):
    """The learning rate as a function of the step, with `steps` of them per epoch."""
    rate = settings["learning_rate"]
    if settings["lr_schedule"] == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, settings["epochs"] * steps)
    drops = settings["lr_drop_epochs"]
    if not drops:
        return rate
    values = [rate * settings["lr_drop_factor"] ** i for i in range(len(drops) + 1)]
    # Keras applies a value up to and including its boundary; the drop belongs to the epoch's first step.
    return keras.optimizers.schedules.PiecewiseConstantDecay([drop * steps - 1 for drop in drops], values)
