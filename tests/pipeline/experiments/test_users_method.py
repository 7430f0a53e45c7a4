"""What is wrong with a method in a user's module is told in one line that names it."""

import dataclasses

import pytest

from macer_tf import MACERModel
from pipeline.cli.command_line import FROM_0, Kind, Setting, none_or, whole
from pipeline.experiments import users_method
from pipeline.experiments.methods import Method
from pipeline.utils.errors import InputError

LAM = Setting("lam", FROM_0, "weight", 1.0)
FROM = Setting("from_epoch", none_or("never", whole(1)), "when it begins", None)
GOOD = Method(name="mine", label="Mine", model=MACERModel, settings=(LAM, FROM))


def leave(*_):
    raise SystemExit(3)


def refuse(_):
    raise ValueError("lam and sigma do not go together")


def test_a_method_in_order_is_as_it_was():
    found = users_method.checked("my:METHOD", dataclasses.replace(GOOD, check=refuse, work=lambda settings, epoch: 2))
    assert found.settings == GOOD.settings
    assert (found.schedule({}), found.idle({}), found.last_epochs({}), found.work({}, 0)) == (None, {}, {}, 2)
    with pytest.raises(ValueError, match=r"^lam and sigma do not go together$"):
        found.check({})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"label": None}, "must have a text as its label. Received: None"),
        ({"settings": {"lam": 1}}, "must have a tuple of settings. Received: {'lam': 1}"),
        ({"settings": ("lam",)}, "must be Setting(name, kind, meaning, default), with a Kind such as FROM_0"),
        ({"settings": (Setting("lam", whole, "weight", 1),)}, "must be Setting(name, kind, meaning, default)"),
        (
            {"settings": (dataclasses.replace(LAM, name="my-lam"),)},
            "digits and underscores, because it becomes a flag.",
        ),
        ({"settings": (dataclasses.replace(LAM, default=-1),)}, "must be a number from 0. Received: -1"),
        ({"settings": (dataclasses.replace(LAM, default={1}),)}, "must be a number from 0. Received: {1}"),
        ({"settings": (Setting("size", Kind("a size", leave), "", "s"),)}, "must be a size. Received: 's'"),
    ],
)
def test_settings_that_are_none_are_refused(changes, line):
    with pytest.raises(InputError, match=r"the method my:METHOD|The method my:METHOD") as error:
        users_method.checked("my:METHOD", dataclasses.replace(GOOD, **changes))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "function", "line"),
    [
        (
            "model",
            None,
            "The method my:METHOD fails in its function model (TypeError: 'NoneType' object is not callable).",
        ),
        ("model", leave, "The method my:METHOD fails in its function model (SystemExit: 3)."),
        ("check", lambda settings: settings["lam"], "fails in its function check (KeyError: 'lam')."),
        ("schedule", lambda settings: 3, "schedule of the method my:METHOD must return a Keras callback or None."),
        (
            "idle",
            lambda settings: {"alpha": "why"},
            "must return a dict of settings' names and texts. Received: {'alpha'",
        ),
        ("last_epochs", lambda settings: {"lam": "5"}, "settings' names and numbers of epochs. Received: {'lam': '5'}"),
        ("work", lambda settings, epoch: 0, "must return a number above 0. Received: 0"),
    ],
)
def test_functions_that_fail_are_named(name, function, line):
    method = users_method.checked("my:METHOD", dataclasses.replace(GOOD, **{name: function}))
    arguments = {"model": (None, {}), "work": ({}, 0)}.get(name, ({},))
    with pytest.raises(InputError) as error:
        getattr(method, name)(*arguments)
    assert line in str(error.value)
