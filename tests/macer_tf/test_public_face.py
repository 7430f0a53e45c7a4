"""What a user of the library meets: names, types, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import types

import pytest

import macer_tf

MODULES = [name for _, name, _ in pkgutil.walk_packages(macer_tf.__path__, "macer_tf.") if "._" not in name]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def members(module):
    """(name, object) of the public functions and classes that a module defines, and of the classes' public methods."""
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member):
            yield name, member
        elif inspect.isclass(member):
            yield name, member
            for attribute, value in vars(member).items():
                value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                is_own = getattr(value, "__module__", None) == module.__name__ and not hasattr(value, "__wrapped__")
                if inspect.isfunction(value) and (not attribute.startswith("_") or attribute == "__init__") and is_own:
                    yield f"{name}.{attribute}", value


def without_annotation(function):
    """What of a function's signature is not annotated."""
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
    missing = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
    needs_return = function.__name__ != "__init__" and signature.return_annotation is signature.empty
    return missing + (["return"] if needs_return else [])


def test_every_public_name_is_there_and_completed():
    assert [name for name in dir(macer_tf) if not name.startswith("_")] == sorted(macer_tf.__all__)
    for name in macer_tf.__all__:
        assert getattr(macer_tf, name) is not None, name
    with pytest.raises(AttributeError, match="module 'macer_tf' has no attribute 'MacerModel'"):
        macer_tf.MacerModel  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_says_its_types(module):
    found = {
        name: missing
        for name, member in members(importlib.import_module(module))
        if inspect.isfunction(member) and (missing := without_annotation(member))
    }
    assert found == {}


@pytest.mark.parametrize("name", [name for name in macer_tf.__all__ if name != "ABSTAIN"])
def test_every_public_object_has_an_example(name):
    exported = getattr(macer_tf, name)
    objects = [(name, exported)]
    if isinstance(exported, types.ModuleType):
        objects = [(full, member) for full, member in members(exported) if "." not in full]
    assert [full for full, member in objects if ">>>" not in inspect.getdoc(member)] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module):
    # Each by itself: it imports all that it uses.
    results = doctest.testmod(importlib.import_module(module), globs={}, optionflags=FLAGS)
    assert results.failed == 0
