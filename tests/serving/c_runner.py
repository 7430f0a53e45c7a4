"""Builds saved_model_runner.c against the TensorFlow wheel and talks to it: a model server without Python or Keras."""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

INVALID_ARGUMENT = 3
_SOURCE = Path(__file__).with_name("saved_model_runner.c")
_SECONDS = 300


@dataclass(frozen=True)
class Answer:
    """What one request came to.

    Attributes:
        code: TensorFlow's; 0 is OK.
        message: of the error.
        peak: memory of the process until then, KiB.
        outputs: name -> array.
    """

    code: int
    message: str
    peak: int
    outputs: dict


@dataclass(frozen=True)
class Tensor:
    """An input as raw bytes, which need not fit its type and shape."""

    dtype: int
    dims: tuple
    data: bytes


def build(directory):
    """Path of the compiled program; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NEEDS A C COMPILER: no cc on the path")
    wheel = Path(tf.__file__).parent
    program = Path(directory) / "saved_model_runner"
    libraries = [f"-L{wheel}", f"-Wl,-rpath,{wheel}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    # The default linker takes ten times as long over the wheel's libraries.
    linker = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []
    command = [
        compiler,
        *linker,
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Werror",
        f"-I{wheel / 'include'}",
        _SOURCE,
        "-o",
        program,
    ]
    subprocess.run([*command, *libraries], check=True, capture_output=True, text=True, timeout=_SECONDS)
    return program


def run(program, saved_model, requests, directory):
    """Runs (signature, name -> array or `Tensor`) requests in one process with an empty environment, in order.

    Returns:
        a list of `Answer`s.
    """
    requests_file, answers_file = Path(directory) / "requests", Path(directory) / "answers"
    with open(requests_file, "wb") as file:
        for signature, inputs in requests:
            file.write(_request(signature, inputs))
    process = subprocess.run(
        [program, saved_model, requests_file, answers_file], env={}, capture_output=True, text=True, timeout=_SECONDS
    )  # fmt: skip
    assert process.returncode == 0, f"exit status {process.returncode}: {process.stderr[-2000:]}"
    data = answers_file.read_bytes()
    answers, at = [], 0
    while at < len(data):
        answer, at = _answer(data, at)
        answers.append(answer)
    assert len(answers) == len(requests)
    return answers


def tensor(array):
    """An array as a `Tensor`."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        texts = [text if isinstance(text, bytes) else text.encode() for text in array.ravel().tolist()]
        return Tensor(tf.string.as_datatype_enum, array.shape, b"".join(_text(text) for text in texts))
    return Tensor(tf.as_dtype(array.dtype).as_datatype_enum, array.shape, array.tobytes())


def _text(data):
    return struct.pack("<I", len(data)) + data


def _request(signature, inputs):
    parts = [_text(signature.encode()), struct.pack("<I", len(inputs))]
    for name, value in inputs.items():
        value = value if isinstance(value, Tensor) else tensor(value)
        rank = len(value.dims)
        parts += [_text(name.encode()), struct.pack(f"<ii{rank}qQ", value.dtype, rank, *value.dims, len(value.data))]
        parts.append(value.data)
    return b"".join(parts)


def _answer(data, at):
    def take(layout):
        nonlocal at
        values = struct.unpack_from(f"<{layout}", data, at)
        at += struct.calcsize(f"<{layout}")
        return values

    def take_bytes(size):
        nonlocal at
        at += size
        return data[at - size : at]

    (code,) = take("i")
    message = take_bytes(*take("I")).decode()
    peak, num_outputs = take("qI")
    outputs = {}
    for _ in range(num_outputs):
        name = take_bytes(*take("I")).decode()
        dtype, rank = take("ii")
        dims = take(f"{rank}q")
        (size,) = take("Q")
        if dtype == tf.string.as_datatype_enum:
            outputs[name] = np.array([take_bytes(*take("I")) for _ in range(int(np.prod(dims)))], object).reshape(dims)
        else:
            outputs[name] = np.frombuffer(take_bytes(size), tf.as_dtype(dtype).as_numpy_dtype).reshape(dims)
    return Answer(code, message, peak, outputs), at
