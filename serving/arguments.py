"""What this package's command lines have in common."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

# Options of --trust_model.
TRUST_MODEL: dict[str, Any] = {
    "action": "store_true",
    "help": "load it even if its graph could reach files, the network or this process",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others, and which accepts no option twice or cut short."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})
        # Options seen so far while parsing.
        self.given: set[str] = set()
        self.register("action", None, _Store)
        self.register("action", "store_true", _Switch)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        self.given.clear()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


class _Store(argparse.Action):
    """Refuses an empty value, and an option that is given twice, because one of its values would be ignored."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        assert isinstance(parser, Parser)
        # Such as "$UNSET"; as a path, it would mean the current folder.
        if values == "":
            parser.error(f"{option_string or self.dest} must not be empty. Received: ''")
        if option_string and self.dest in parser.given:
            parser.error(f"--{self.dest} is given twice; give it once")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, True if self.nargs == 0 else values)


class _Switch(_Store):
    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **kwargs)
