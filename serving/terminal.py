"""Makes a command's output reach any terminal, pipe or closed stream, and keeps it from controlling the terminal."""

import codecs
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading

INTERRUPTED = 130
# The status by which a shell reports a program that SIGPIPE ended.
_BROKEN_PIPE = 141
# How the dynamic loader says that memory is short.
_NO_MEMORY = ("failed to map segment", os.strerror(errno.ENOMEM))
_PLAIN = {"±": "+-", "·": "-", "…": "...", "→": "->"}


def run(main):
    """Ends this process with the exit status that `main` returns, whatever its threads are doing.

    While `main` runs, characters that the output's encoding lacks are replaced, writing to closed streams does nothing,
    and once nobody reads the output any more, the process ends quietly, with status 141. Output that a full disk cannot
    take is dropped; this is reported at the end, with status 1.
    """
    _open_closed_descriptors()
    codecs.register_error("macer_tf.plain", _plain)
    sys.stdout, sys.stderr = _Stream(sys.stdout, 1), _Stream(sys.stderr, 2)
    try:
        status = main()
    except SystemExit as end:  # as --help does
        status = end.code or 0
    except KeyboardInterrupt:  # before there is anything to lose
        print("\nInterrupted.", file=sys.stderr)
        status = INTERRUPTED
    sys.stdout.flush()
    if lost := sys.stdout.lost:
        print(f"error: Some of the output could not be written ({lost.strerror}).", file=sys.stderr)
        status = status or 1
    sys.stderr.flush()
    _remove_generated_code()
    # Threads that an error left in the middle of a forward pass would crash during Python's own shutdown.
    os._exit(status)


def _remove_generated_code():
    """Removes what AutoGraph wrote to the folder of temporary files: TensorFlow does so at Python's own exit only."""
    for name in [name for name in sys.modules if name.startswith("__autograph_generated_file")]:
        with contextlib.suppress(OSError):
            os.remove(sys.modules[name].__file__)


def run_main_of(module):
    """As `run`, but imports the module of `main` only then, so that Ctrl-C meanwhile is answered in one line."""
    run(lambda: importlib.import_module(module).main())


def version():
    """What every command answers to --version, in one line."""
    import macer_tf  # only now: a server validates models without it

    return f"macer_tf {macer_tf.__version__}"


def import_tensorflow():
    """Imports and returns TensorFlow, without the page that its C++ side writes before its log level takes effect.

    Raises:
        MemoryError: in one line, if there is not enough memory for it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    try:
        with _stderr_nowhere():
            import tensorflow
    except (ImportError, MemoryError) as error:
        if isinstance(error, ImportError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise MemoryError(
            "There is not enough memory to load TensorFlow; end other programs, or raise the limit (ulimit -v)."
        ) from error
    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


@contextlib.contextmanager
def _stderr_nowhere():
    """In this context, descriptor 2 leads nowhere, except that what Ctrl-C prints can be read."""
    kept, interrupt = os.dup(2), signal.getsignal(signal.SIGINT)

    def show_and_interrupt(*received):
        os.dup2(kept, 2)
        interrupt(*received)

    can_be_interrupted = callable(interrupt) and threading.current_thread() is threading.main_thread()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        if can_be_interrupted:
            signal.signal(signal.SIGINT, show_and_interrupt)
        yield
    finally:
        if can_be_interrupted:
            signal.signal(signal.SIGINT, interrupt)
        os.dup2(kept, 2)
        os.close(kept)


def printable(text):
    """Text in one line that no terminal obeys: control and other non-printing characters become escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text))


def first_line(error):
    """The first line of what an exception says, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Stream:
    """A text stream on which no write can stop the process, unless its reader is gone.

    lost: why something could not be written; None if all was.
    """

    def __init__(self, stream, descriptor):
        # None if it was closed.
        self._stream = stream or open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        self.lost = None
        # Line by line, so that a pipe or a log has what was printed before a kill.
        self._stream.reconfigure(errors="macer_tf.plain", line_buffering=True)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        self._try(self._stream.write, text)
        return len(text)

    def flush(self):
        self._try(self._stream.flush)

    def _try(self, do, *text):
        try:
            do(*text)
        except BrokenPipeError:
            os._exit(_BROKEN_PIPE)
        except OSError as error:  # a full disk must not end hours of work
            self.lost = error


def _open_closed_descriptors():
    """Otherwise the next files to be opened would get these numbers, and with them what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _plain(error):
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one, ascii(one)[1:-1]) for one in text), error.end
