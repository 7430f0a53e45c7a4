"""What the command lines of this package have in common."""

import argparse
from typing import Any, NoReturn

# Options of --trust_model.
TRUST_MODEL: dict[str, Any] = {
    "action": "store_true",
    "help": "load it although its graph could reach files, the network or this process",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")
