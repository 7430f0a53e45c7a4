"""Training methods: each is one file with everything specific to it, here or in a module of the user's.

A method's file imports TensorFlow only where its model is made, so that neither the help nor a typo waits for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.cli.command_line import Setting
from pipeline.experiments import users_method
from pipeline.utils import code
from pipeline.utils.errors import InputError
from serving import terminal


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training method.

    Attributes:
        name: the method's name in settings.
        label: its name in figures and reports.
        settings: the `Setting`s that only some methods have, with this method's defaults. Every method also has those
            of `setting_list`.
        model: called with (network: images -> logits, settings: name -> value); returns the Keras model to compile,
            a `macer_tf.noisy_training.NoisyTrainingModel`.
        schedule: called with the settings; returns the Keras callback that changes what differs between epochs, or
            None. It may also stop training; what it counts for that begins again after a kill.
        check: called with the settings before anything is done; raises a one-line ValueError for what no single setting
            reveals.
        idle: called with the settings; returns name -> why, for those of this method's settings that have no effect
            given the others.
        last_epochs: called with the settings; returns name -> how many epochs it takes, for those of this method's
            settings that refer to epochs.
        work: called with the settings and an epoch, from 0; returns the work of a step in that epoch, as a multiple of
            the first epoch's.
    """

    name: str
    label: str
    settings: tuple[Setting, ...] = ()
    model: Callable
    schedule: Callable = lambda settings: None
    check: Callable = lambda settings: None
    idle: Callable = lambda settings: {}
    last_epochs: Callable = lambda settings: {}
    work: Callable = lambda settings, epoch: 1

    def defaults(self):
        """Name -> default of the method's own settings."""
        return {setting.name: setting.default for setting in self.settings}


def find(name):
    """The `Method` called `name`: one of NAMES, or package.module:METHOD, from the current folder or an installation.

    Raises:
        InputError: in one line, if there is no such method.
    """
    if name in _METHODS:
        return _METHODS[name]
    if ":" not in name:
        raise InputError(f"Unknown method. Received: {name}; accepted: {', '.join(NAMES)}, or package.module:METHOD.")
    for module in code.modules(name):
        code.digest(module)  # so that a typo does not wait for TensorFlow
    terminal.import_tensorflow()  # nearly every method's module imports it, and it would write its page
    method = code.attribute(name)
    if not isinstance(method, Method):
        raise InputError(f"{name} must be a {Method.__module__}.Method. Received: {type(method).__name__}")
    return users_method.checked(name, method)


def having(setting):
    """The names of this package's methods that have a setting of this name."""
    return [method.name for method in _METHODS.values() if setting in method.defaults()]


# After `Method`, because they use it.
from pipeline.experiments.methods import (  # noqa: E402
    catrs,
    cohen,
    consistency,
    macer,
    smoothadv,
    smoothmix,
    stability,
)

_MODULES = (macer, cohen, smoothadv, stability, consistency, smoothmix, catrs)
_METHODS = {module.METHOD.name: module.METHOD for module in _MODULES}
NAMES = tuple(_METHODS)
