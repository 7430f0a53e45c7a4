"""Loads a SavedModel as a model server does and tries it: python -m serving.validate SAVED_MODEL IMAGES.npy

This uses no Keras and no code of the model, only a graph and its variables. The loader of `saved_model_cli` loads them,
once `serving.graph_safety` has found that the graph only computes; a third argument, `trust`, skips that check. The
last line of output is one JSON object: `answers`, the outputs of `serving_default` for the images, name -> list; and
`checks`, what was found, in order.
"""

if __name__ == "__main__":
    from serving import terminal

    terminal.run_main_of("serving.validate")

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import special

from serving import card as card_lib
from serving import terminal
from serving.exit import exit_status
from serving.files import WARMUP, for_tensorflow
from serving.graph_safety import check_effects

_TIMEOUT_SECONDS = 600
# The exit status that `exit_status` returns for bad input.
_NOT_THE_MODEL = 2
# Limits on what a model may make the process print, and on what it may write at all.
_MAX_PRINTED_BYTES = 2**24
_TRUST = "trust"
# Environment variable: the process that waits for the answer, and that this one must not outlive.
_WAITING = "MACER_TF_WAITING"
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_NO_MEMORY = "std::bad_alloc"  # as C++ says before it aborts
# Signals by which people, or a system short of memory or time, end a process; a model's own faults cause others.
_ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
_TAKE_IMAGES = ("serving_default", "certify_custom", "predict")
# What `tf.saved_model.save` adds for loaders.
_INITIALIZER = "__saved_model_init_op"
_CHECKS = (
    "the graph does nothing but compute, unless it is trusted",
    "the model card meets its schema, and `metadata` returns it",
    "every signature answers with one row per image",
    "radii follow from n votes: p_lower is not above Clopper-Pearson's bound, and nothing is certified at 1/2 or below",
    "`predict` returns a class only at a p-value of alpha or below",
    "every signature has a warm-up request, and answers it",
    "every signature that takes images refuses NaN, infinity, pixels outside [0, 1] and too many images",
)


# Keras, which TensorFlow imports, imports these if they are there, for plots and wrappers: a third of the start.
_EXTRAS_OF_KERAS = ("matplotlib", "pandas", "sklearn")


class _NotTheModelError(ValueError):
    """The command line is wrong, TensorFlow cannot be loaded, or memory ran out."""


def in_fresh_process(saved_model, images, trust=False):
    """What this module prints for a SavedModel and an .npy file of images, run in its own process.

    Args:
        saved_model: directory.
        images: path of the file.
        trust: whether the graph may do more than compute.

    Returns:
        The JSON object, and an empty text. If the model does not pass, no object, and the reason in one line.

    Raises:
        RuntimeError: in one line, if it does not answer in time, is ended from outside, runs out of memory, or cannot
            load TensorFlow: that says more about this machine than about the model.
    """
    command = [sys.executable, "-m", "serving.validate", Path(saved_model).resolve(), Path(images).resolve()]
    command += [_TRUST] if trust else []
    root = Path(__file__).resolve().parents[1]
    # Files, not pipes: endless output fills no memory, and a process that outlives its parent is not waited for.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = subprocess.run(
                command,
                cwd=root,
                env={**os.environ, _WAITING: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the SavedModel did not answer within {_TIMEOUT_SECONDS} s; try again") from None
        printed, errors = (_read(file) for file in (out, err))
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(printed.splitlines()[-1])
        if status == 0 and isinstance(found, dict) and found.keys() == {"answers", "checks"}:
            return found, ""
    # The last one, because the model may print anything before it.
    named = re.findall(r"^error: (.*)", errors, re.MULTILINE)
    problem = named[-1] if named else f"the process died with exit status {status}"
    if status == _NOT_THE_MODEL:
        raise RuntimeError(f"the SavedModel was not tried: {problem}")
    if ended_by := _ended_from_outside(status, errors):
        raise RuntimeError(f"the process that tried the SavedModel was ended by {ended_by}; try again")
    return None, problem


def _ended_from_outside(status, errors):
    """What ended a process with this status, in words, if the process itself did not; otherwise None."""
    if status == terminal.INTERRUPTED:  # as `exit_status` makes of Ctrl-C
        return "Ctrl-C"
    if status == -signal.SIGABRT and _NO_MEMORY in errors:
        return "a lack of memory"
    ended_by = next((one for one in _ENDED_FROM_OUTSIDE if one == -status), None)
    if ended_by == signal.SIGKILL:
        return "SIGKILL, as the system does when memory is short"
    return ended_by and ended_by.name


def _read(file):
    file.seek(0)
    return file.read(_MAX_PRINTED_BYTES).decode(errors="replace")


class Server:
    """The signatures of a SavedModel, loaded into the session's graph.

    Raises:
        ValueError or a TensorFlow error: if it cannot be loaded.
    """

    def __init__(self, session, saved_model):
        import tensorflow as tf

        self._session = session
        with for_tensorflow(saved_model) as path:
            self.signatures = tf.compat.v1.saved_model.loader.load(session, ["serve"], path).signature_def
        self._make_ndarray = tf.make_ndarray

    def __call__(self, signature, **inputs):
        """The outputs, name -> array; an input that is left out takes the signature's default."""
        definition = self.signatures[signature]
        defaults = {name: self._make_ndarray(proto) for name, proto in definition.defaults.items()}
        feed = {definition.inputs[name].name: value for name, value in {**defaults, **inputs}.items()}
        return self._session.run({name: tensor.name for name, tensor in definition.outputs.items()}, feed)


def run(saved_model, images, trust=False):
    """Carries out all checks.

    Args:
        saved_model: directory.
        images: float32 [images, H, W, C] in [0, 1], no more than a request takes.
        trust: whether the graph may do more than compute.

    Returns:
        answers, name -> array, of `serving_default`; and the checks that were passed, in words.

    Raises:
        OSError, ValueError or a TensorFlow error: for the first check that fails, with what was found.
    """
    import tensorflow as tf

    if not trust:
        check_effects(saved_model)
    card, warmup = card_lib.unforced(card_lib.read(saved_model)), read_warmup(saved_model)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        server = Server(session, saved_model)
        missing = {*_TAKE_IMAGES, "metadata"} - set(server.signatures)
        if missing:
            raise ValueError(f"The model has no signature {', '.join(sorted(missing))}.")
        if {signature for signature, _ in warmup} != set(server.signatures) - {_INITIALIZER}:
            raise ValueError(
                f"Warm-up requests are for {[signature for signature, _ in warmup]}, not for every signature."
            )
        for text in server("metadata")["model_card"]:
            if card_lib.from_json(text.decode()) != card:
                raise ValueError(f"`metadata` does not return what is in {card_lib.NAME}.")
        answers = {name: server(name, images=images) for name in _TAKE_IMAGES}
        for signature, outputs in answers.items():
            for name, values in outputs.items():
                if len(values) != len(images):
                    raise ValueError(f"Output {name} of {signature} has {len(values)} rows for {len(images)} images.")
        for signature in ("serving_default", "certify_custom"):
            check_certificates(answers[signature], card)
        check_predictions(answers["predict"], card)
        for signature, inputs in warmup:
            server(signature, **inputs)
        for signature in _TAKE_IMAGES:
            _check_refusals(server, signature, images, card)
    return answers["serving_default"], list(_CHECKS)


def check_certificates(answers, card):
    """Raises ValueError unless predicted_class, radius and p_lower follow from the votes and the card."""
    columns = (answers[name] for name in ("predicted_class", "radius", "p_lower", "votes"))
    for predicted, radius, p_lower, votes in zip(*columns, strict=True):
        abstained = predicted == -1 and radius == 0 and p_lower <= 0.5
        is_class = 0 <= predicted < len(card["class_names"])
        successes = votes[predicted] if is_class else 0
        # At Clopper-Pearson's bound, it is alpha. SciPy's inverse would be too high for some counts.
        chance = special.betainc(max(successes, 1), card["n"] - successes + 1, p_lower)
        bounded = is_class and p_lower > 0.5 and chance <= card["alpha"]
        certified = bounded and 0 <= radius <= card["sigma"] * special.ndtri(p_lower)
        if votes.min() < 0 or votes.sum() != card["n"] or not (abstained or certified):
            raise ValueError(
                f"Impossible certificate: class {predicted}, radius {radius}, p_lower {p_lower}, votes {votes.tolist()}"
            )


def check_predictions(answers, card):
    """Raises ValueError unless a class comes with a p-value of alpha or below, and ABSTAIN with one above."""
    columns = (answers[name] for name in ("predicted_class", "p_value", "samples"))
    for predicted, p_value, samples in zip(*columns, strict=True):
        decided = 0 <= predicted < len(card["class_names"]) and 0 <= p_value <= card["alpha"]
        if samples < 1 or not (decided or (predicted == -1 and card["alpha"] < p_value <= 1)):
            raise ValueError(f"Impossible prediction: class {predicted}, p-value {p_value}, {samples} samples")


def read_warmup(saved_model):
    """(signature name, inputs name -> array) of each warm-up request of a SavedModel.

    Raises:
        OSError: if there are none.
        ValueError or a TensorFlow error: if the file is damaged.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = Path(saved_model) / WARMUP
    requests = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def _check_refusals(server, signature, images, card):
    import tensorflow as tf

    too_many = np.zeros((card["max_batch_size"] + 1, *images.shape[1:]), np.float32)
    bad = {f"an image of pixels {value}": np.full_like(images[:1], value) for value in (np.nan, np.inf, -1.0, 2.0)}
    for what, wrong in {**bad, f"{len(too_many)} images at once": too_many}.items():
        try:
            server(signature, images=wrong)
        except tf.errors.InvalidArgumentError:
            continue
        raise ValueError(f"{signature} did not refuse {what}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if the model does not pass, 2 for bad input, 130 for Ctrl-C.

    Without arguments, those of this process are used, which is then taken to run nothing but this command.
    """
    if arguments is None:
        _confine()
        _do_without(_EXTRAS_OF_KERAS)

    def parse():
        given = sys.argv[1:] if arguments is None else list(arguments)
        if len(given) not in (2, 3) or given[2:] not in ([], [_TRUST]):
            raise _NotTheModelError(
                f"Expected SAVED_MODEL IMAGES.npy, and {_TRUST} or nothing. Received: {' '.join(given)}"
            )
        try:
            terminal.import_tensorflow()
        except (ImportError, MemoryError) as error:
            raise _NotTheModelError(str(error) or "TensorFlow cannot be loaded.") from None
        return given, None

    def work(given):
        saved_model, images, *trust = given
        pixels = np.load(images)
        from tensorflow.errors import ResourceExhaustedError

        try:
            answers, checks = run(saved_model, pixels, bool(trust))
        except (MemoryError, ResourceExhaustedError):
            raise _NotTheModelError(
                "There is not enough memory to run it; end other programs, or raise the limit (ulimit -v)."
            ) from None
        found = {"answers": {name: values.tolist() for name, values in answers.items()}, "checks": checks}
        # After whatever the model has printed.
        print("\n" + json.dumps(found))
        return 0

    # Anything else that goes wrong is the model's doing, and is reported with its type.
    return exit_status(parse, work, "Nothing was changed.", bad_input=_NotTheModelError)


def _confine():
    """Keeps this process from outliving the one that waits for it, and from writing without end."""
    if _WAITING in os.environ:
        _end_with(int(os.environ[_WAITING]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_PRINTED_BYTES, _MAX_PRINTED_BYTES))


def _do_without(packages):
    """Makes this process find none of these packages, unless it has imported them."""
    for name in packages:
        sys.modules.setdefault(name, None)


def _end_with(waiting):
    """Ends this process when the process of this number ends, for whatever reason."""
    # Done by the system, because a graph may keep this process from ever checking.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != waiting:  # it has already ended
        os._exit(1)
