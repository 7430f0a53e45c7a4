"""Fair timing on a machine that others also use: contestants take turns, and disturbed rounds are dropped."""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import statistics
import time

import macer_tf  # noqa: F401  first of all: it turns oneDNN on

MATRIX_SIDE = 2048
MATRIX_FLOPS = 2 * MATRIX_SIDE**3
# Share of the processor time that a contestant's cores could have given it; less means that others used them.
LOWEST_SHARE = 0.8


class Rounds:
    """Wall-clock seconds of a step of each contestant, in each round that was not disturbed.

    Each contestant has its own process, so that neither another's waiting threads nor the memory that it left behind
    slows it down; only one runs at a time. Its turn is one step to warm up, and then the steps that are timed.

    Args:
        contestants: name -> (function, *arguments), pickled to the process; the function returns the step, a callable
            without arguments.
        count: rounds to run.
        steps: timed steps in a round.
        threads: cores for each contestant.
        idle: names whose processor time is not checked, because they do not keep every core busy.

    Raises:
        SystemExit: if a contestant ends, or no round had its cores.
    """

    def __init__(self, contestants, count, steps, threads, idle=()):
        self.kept, self.count = [], count
        pipes = {}
        with contextlib.ExitStack() as started:
            for name, contestant in contestants.items():
                pipes[name] = started.enter_context(_contestant(steps, threads, *contestant))
                _answer(pipes[name], name)
            for _ in range(count):
                seconds, shares = {}, {}
                for name, pipe in pipes.items():
                    pipe.send(None)
                    seconds[name], shares[name] = _answer(pipe, name)
                if all(share >= LOWEST_SHARE for name, share in shares.items() if name not in idle):
                    self.kept.append(seconds)
        if not self.kept:
            raise SystemExit(f"In none of {count} rounds were {threads} cores free; run this on an idle machine.")

    def median(self, name):
        """Median seconds of a contestant."""
        return statistics.median(seconds[name] for seconds in self.kept)

    def ratio(self, name, other):
        """Median over the rounds of how many times as long as `other` `name` takes."""
        return statistics.median(seconds[name] / seconds[other] for seconds in self.kept)

    def __str__(self):
        return f"medians of {len(self.kept)} rounds ({self.count - len(self.kept)} dropped)"


@contextlib.contextmanager
def _contestant(steps, threads, *contestant):
    """A pipe to the process of a contestant, which lasts as long as this context."""
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    process = context.Process(target=_serve, args=(end, steps, threads, *contestant), daemon=True)
    # Ctrl-C reaches that process, too, but only this one answers it; the other inherits that it ignores it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, before)
    end.close()
    try:
        yield pipe
    finally:
        process.terminate()


def _serve(pipe, steps, threads, function, *arguments):
    """Makes a contestant; then, for each message, runs it and answers (seconds of a step, share of its cores)."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    step = function(*arguments)
    step()
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            step()
            started, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                step()
            seconds = time.perf_counter() - started
            pipe.send((seconds / steps, (time.process_time() - cpu) / seconds / threads))


def _answer(pipe, name):
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"{name} ended early; see above.") from None


def has_reference(folder, modules):
    """Whether the authors' code is available for timing; if not, a line says so before anything is timed.

    Args:
        folder: a clone of github.com/RuntianZ/macer, or None.
        modules: names of what it needs besides the project's requirements.

    Raises:
        SystemExit: if the folder is not such a clone.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if folder is not None and not (folder / "macer.py").is_file():
        raise SystemExit(f"--reference must be a clone of github.com/RuntianZ/macer. Received: {folder}")
    if folder is None or missing:
        reason = f"not installed: {', '.join(missing)}" if folder is not None else "no --reference was given"
        print(f"LEFT OUT: the authors' code, and with it every comparison to it ({reason}).", flush=True)
    return folder is not None and not missing


def matrix_product(dtype):
    """A large matrix product in "float32" or "bfloat16", MATRIX_FLOPS: the most that the cores can do."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal([MATRIX_SIDE, MATRIX_SIDE]), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return lambda: product().numpy()


def training_step(model, batches):
    """A training step of a compiled Keras model on the next batch of a dataset, as `fit` runs it."""
    iterator = iter(batches)
    model.make_train_function()
    return lambda: float(model.train_function(iterator)["loss"])


def constant_batches(shape, batch, num_classes=10):
    """A dataset that endlessly returns the same random images [batch, *shape] in [0, 1] and labels."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, *shape), np.float32), rng.integers(0, num_classes, batch)
    return tf.data.Dataset.from_tensors((images, labels)).repeat()
