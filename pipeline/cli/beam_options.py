"""Beam's own options on our command lines: what our parser does not know is Beam's, so none are listed here."""

import argparse

from pipeline.cli import command_line
from pipeline.cli.command_line import ABOVE_0, PLACE, Setting
from pipeline.utils.errors import InputError

VOTES = Setting("votes", PLACE, "on an engine: where workers hand in votes, a shared folder or URL", None, "in output")
PATIENCE = Setting("patience", ABOVE_0, "on an engine: seconds without new votes until a job is lost", 300.0)
NOTE = "Other options are Beam's (docs/cluster.md)."
_SECONDS_TO_ASK = 10.0


def checked(flags, settings):
    """What is left of a command line, if Beam knows it.

    Args:
        flags: texts.
        settings: names of our own settings, for the hint about an unknown one.

    Returns:
        The same texts, as a tuple.

    Raises:
        InputError: in one line, for what neither we nor Beam know, or if no runner is named.
    """
    # Imported only now, so that nothing else waits for Beam.
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = _Parser(allow_abbrev=False, add_help=False)
    for options in {str(one): one for one in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)
    values, unknown = parser.parse_known_args(list(flags))
    _refuse_twice(parser, flags)
    names = [name for action in parser._actions for name in action.option_strings]
    if unknown and values.job_endpoint:
        of_server = _options_of(values.job_endpoint)
        names += of_server
        unknown = _unknown(unknown, of_server)
    if unknown:
        others = [name.removeprefix("--") for name in names]
        raise InputError(command_line.unknown_argument(unknown[0], settings, others))
    if values.runner is None:
        raise InputError(
            f"{flags[0].split('=')[0]} is one of Beam's options, for an engine: name the engine with --runner."
        )
    return tuple(flags)


def check_engine(settings, given):
    """Raises InputError if something for an engine is given, but no engine."""
    for setting in (VOTES, PATIENCE):
        if setting.name in given and not settings["beam"]:
            raise InputError(f"--{setting.name} is for an engine: name the engine with --runner.")


def _refuse_twice(parser, flags):
    """Raises InputError if an option is given twice: Beam would take the last value."""
    given = [flag.split("=")[0] for flag in flags]
    for action in parser._actions:
        names = [name for name in given if name in action.option_strings]
        if len(names) > 1 and isinstance(action, argparse._StoreAction):
            raise InputError(f"{names[0]} is given twice. Give it once.")


class _Parser(argparse.ArgumentParser):
    # Beam's own options include one more kind.
    def add_value_provider_argument(self, *names, **how):
        self.add_argument(*names, **how)

    def error(self, message):
        raise InputError(f"{message[:1].upper()}{message[1:]} (one of Beam's options).")


def _unknown(left, known):
    """What is left of an unparsed command line besides known flags and their values."""
    unknown, is_value = [], False
    for text in left:
        if text.startswith("--"):
            is_value = text.split("=")[0] in known
            unknown += [] if is_value else [text]
        elif not is_value:
            unknown.append(text)
    return unknown


def _options_of(endpoint):
    """The flags that a job server knows; none if it does not answer, which is reported when it is used."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        ask = beam_job_api_pb2_grpc.JobServiceStub(channel).DescribePipelineOptions
        try:
            answer = ask(beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=_SECONDS_TO_ASK)
        except grpc.RpcError:
            return []
    return [f"--{option.name}" for option in answer.options]
