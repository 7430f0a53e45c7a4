"""A training method from a user's module, checked: whatever is wrong with it is told in one line that names it."""

import dataclasses
import json
import math
import numbers

from pipeline.cli import command_line
from pipeline.utils.errors import InputError, reason

# What a method's functions must return, besides `model`, whose model is checked where it is compiled.
_RETURNS = {
    "schedule": "a Keras callback or None",
    "idle": "a dict of settings' names and texts",
    "last_epochs": "a dict of settings' names and numbers of epochs",
    "work": "a number above 0",
}
_FUNCTIONS = ("model", "check", *_RETURNS)


def checked(reference, method):
    """A `Method` whose settings are in order and whose functions raise InputError alone; `check` also ValueError.

    Args:
        reference: what the user calls it, package.module:METHOD.
        method: the `Method`.

    Raises:
        InputError: in one line, for a setting or a function that is none.
    """
    for name in ("name", "label"):
        if not isinstance(getattr(method, name), str):
            raise InputError(
                f"The method {reference} must have a text as its {name}. Received: {getattr(method, name)!r}"
            )
    if not isinstance(method.settings, tuple | list):
        raise InputError(f"The method {reference} must have a tuple of settings. Received: {method.settings!r}")
    for setting in method.settings:
        _check_setting(reference, setting)
    return dataclasses.replace(
        method, **{name: _guarded(reference, name, getattr(method, name), method) for name in _FUNCTIONS}
    )


def _check_setting(reference, setting):
    if not isinstance(setting, command_line.Setting) or not isinstance(setting.kind, command_line.Kind):
        raise InputError(
            f"The settings of the method {reference} must be Setting(name, kind, meaning, default), with a Kind such "
            f"as FROM_0 or whole(1). Received: {setting!r}"
        )
    if not (isinstance(setting.name, str) and setting.name.isidentifier()):
        raise InputError(
            f"A setting of the method {reference} must have a name of letters, digits and underscores, because it "
            f"becomes a flag. Received: {setting.name!r}"
        )
    # A run's settings file holds it, and gives it back; unless its flag must be left out for it.
    try:
        if (text := command_line.as_given(setting, setting.default)) is not None:
            command_line.value(setting, text)
            json.dumps(setting.default)
    except Exception as error:  # whatever someone's code raises
        raise InputError(
            f"The default of the setting {setting.name} of the method {reference} must be {setting.kind.accepts}. "
            f"Received: {reason(repr(setting.default))}"
        ) from error


def _guarded(reference, name, function, method):
    """The function, with whatever it raises, or wrongly returns, told in one line."""

    def call(*arguments):
        try:
            returned = function(*arguments)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # whatever someone's code raises
            if name == "check" and isinstance(error, ValueError):  # as it says what the user can correct
                raise
            raise InputError(
                f"The method {reference} fails in its function {name} ({type(error).__name__}: {reason(error)})."
            ) from error
        if name in _RETURNS and not _is_in_order(name, returned, method):
            raise InputError(
                f"The function {name} of the method {reference} must return {_RETURNS[name]}. "
                f"Received: {reason(repr(returned))}"
            )
        return returned

    return call


def _is_in_order(name, returned, method):
    if name == "schedule":
        import keras  # only where a method is used: nobody else need wait for it

        return returned is None or isinstance(returned, keras.callbacks.Callback)
    if name == "work":
        return isinstance(returned, numbers.Real) and 0 < returned < math.inf
    kind = str if name == "idle" else numbers.Real
    return isinstance(returned, dict) and all(
        one in method.defaults() and isinstance(value, kind) for one, value in returned.items()
    )
