"""The SavedModel in a C program with an empty environment: no Python, no Keras, no code of ours."""

import itertools
import math

import numpy as np
import pytest
from scipy import special

from macer_tf import certificates, early_exit, noise
from macer_tf.smoothing import SmoothedClassifier, default_microbatch
from macer_tf.votes import Votes
from serving import card
from tests.serving.c_runner import INVALID_ARGUMENT, Tensor, build, run, tensor

# As exported.
N0, N, ALPHA, MAX_BATCH_SIZE = 100, 300, 0.001, 8
TAKE_IMAGES = ("serving_default", "certify_custom", "predict")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def restarts(program, exported, digits, tmp_path_factory):
    """Six real images, and the answers of two processes to the same requests, by name."""
    images = digits[0][-6:]
    empty = {name: (name, {"images": images[:0]}) for name in TAKE_IMAGES}
    requests = {
        **{name: (name, {"images": images}) for name in TAKE_IMAGES},
        "metadata": ("metadata", {}),
        **{f"empty {name}": request for name, request in empty.items()},
        "50 samples": ("certify_custom", {"images": images, "n": np.int64(50)}),
        "own samples": (
            "certify_custom",
            {"images": images, "n": np.int64([30, 60, 90] * 2), "alpha": np.float64(0.01)},
        ),
        "1,000 samples": ("certify_custom", {"images": images[:1], "n": np.int64(1000)}),
        "12,000 samples": ("certify_custom", {"images": images[:1], "n": np.int64(12_000)}),
    }
    processes = []
    for _ in range(2):
        answers = run(program, exported, list(requests.values()), tmp_path_factory.mktemp("restart"))
        assert [answer.message for answer in answers if answer.code] == []
        processes.append(dict(zip(requests, answers, strict=True)))
    return images, processes


def test_certificates_are_the_librarys_on_the_returned_seeds(restarts, digits_model):
    images, answers = restarts
    for answer in (answers[0]["serving_default"], answers[0]["certify_custom"], answers[1]["serving_default"]):
        selection, estimation = [], []
        for image, seed in zip(images, answer.outputs["seed"], strict=True):
            library = SmoothedClassifier(digits_model, seed=seed[0], levels=256)
            selection.append(library.count(image, int(seed[1]), noise.SELECTION, 0, N0))
            estimation.append(library.count(image, int(seed[1]), noise.ESTIMATION, 0, N))
        assert answer.outputs["votes"].tolist() == np.stack(estimation).tolist()
        expected = certificates.certify(Votes(np.stack(selection), np.stack(estimation)), digits_model.sigma, ALPHA)
        assert answer.outputs["predicted_class"].tolist() == expected.predictions.tolist()
        assert (expected.predictions >= 0).any()
        assert (answer.outputs["p_lower"] <= expected.p_lower).all()
        assert (answer.outputs["radius"] <= expected.radii).all()
        np.testing.assert_allclose(answer.outputs["p_lower"], expected.p_lower, atol=1e-10)
        np.testing.assert_allclose(answer.outputs["radius"], expected.radii, atol=1e-6)


def test_predictions_are_the_librarys_on_the_returned_seeds(restarts, digits_model):
    images, answers = restarts
    ends = [0, *early_exit.looks(2 * N, default_microbatch(images.shape[1:]))]
    outputs = answers[0]["predict"].outputs
    for i, (image, seed) in enumerate(zip(images, outputs["seed"], strict=True)):
        library = SmoothedClassifier(digits_model, seed=seed[0], levels=256)
        blocks = [
            library.count(image, int(seed[1]), noise.ESTIMATION, start, end - start)
            for start, end in itertools.pairwise(ends)
        ]
        expected = early_exit.anytime_predict(np.cumsum(blocks, axis=0)[None], ALPHA)
        assert outputs["predicted_class"][i] == expected.predictions[0]
        assert outputs["samples"][i] == expected.samples[0]
        assert outputs["p_value"][i] == pytest.approx(expected.p_values[0], rel=1e-8)


def test_two_restarts_never_give_the_same_noise(restarts):
    _, (first, second) = restarts
    seeds = {
        tuple(seed)
        for answers in (first, second)
        for name in TAKE_IMAGES
        for seed in answers[name].outputs["seed"].tolist()
    }
    assert len(seeds) == 2 * 3 * 6
    assert (first["serving_default"].outputs["votes"] != second["serving_default"].outputs["votes"]).any()


def test_metadata_is_the_card(restarts, exported):
    (text,) = restarts[1][0]["metadata"].outputs["model_card"]
    assert card.from_json(text.decode()) == card.read(exported)


def test_memory_does_not_grow_with_the_number_of_samples(restarts):
    # First activations of 12,000 noisy images at once would be 12,000 * 64 * 16 channels * 4 bytes = 49 MB.
    few, many = (restarts[1][0][f"{n} samples"] for n in ("1,000", "12,000"))
    assert [int(answer.outputs["votes"].sum()) for answer in (few, many)] == [1000, 12_000]
    assert many.peak - few.peak < 30 * 1024


def malformed(rng, images):
    """One malformed request: its signature and inputs, drawn at random."""
    name = TAKE_IMAGES[rng.integers(3)]
    good = images[: rng.integers(1, 5)]
    kind = rng.integers(11)
    if kind == 0:  # another dtype
        dtypes = (np.float64, np.float16, np.int32, np.uint8, np.int64, np.bool_, np.complex64)
        return name, {"images": good.astype(dtypes[rng.integers(len(dtypes))])}
    if kind == 1:  # another rank or shape, the values in order
        shapes = ((-1,), (-1, 8, 8), (-1, 64), (-1, 4, 16, 1), (-1, 8, 1, 8), (-1, 8, 8, 1, 1), (1, -1, 8, 8, 1))
        return name, {"images": good.reshape(shapes[rng.integers(len(shapes))])}
    if kind == 2:  # larger images
        side = int(rng.choice([1, 7, 9, 16, 64, 300]))
        return name, {"images": np.zeros((1, side, side, 3), np.float32)}
    if kind == 3:  # NaN, infinity or a pixel outside [0, 1], anywhere
        bad = good.copy()
        bad[tuple(rng.integers(bad.shape))] = rng.choice([np.nan, np.inf, -np.inf, -1e-6, 1.000001, 255, -3e38, 1e30])
        return name, {"images": bad}
    if kind == 4:  # random bits as floats; one pixel is surely wrong
        bits = rng.integers(0, 2**32, good.shape, dtype=np.uint32)
        bits.flat[0] = 0x7FC00000 | rng.integers(2**22)
        return name, {"images": bits.view(np.float32)}
    if kind == 5:  # over the limit
        return name, {"images": np.zeros((MAX_BATCH_SIZE + int(rng.integers(1, 2000)), 8, 8, 1), np.float32)}
    if kind == 6:  # dimensions that the bytes do not fill: negative, huge, overflowing
        dims = [(int(rng.choice([-1, -(2**63), 2**31, 2**40, 2**62, 2**63 - 1])), 8, 8, 1), (2**33, 2**31, 1, 1)]
        return name, {"images": Tensor(1, dims[rng.integers(2)], good.tobytes())}
    if kind == 7:  # bytes cut off or too many, unknown types, strings
        whole = tensor(good)
        broken = (
            Tensor(1, whole.dims, whole.data[: rng.integers(len(whole.data))]),
            Tensor(1, whole.dims, whole.data + b"\0"),
            Tensor(int(rng.choice([0, -1, 7, 20, 21, 99, 101, 2**31 - 1])), whole.dims, whole.data),
            tensor(np.array(["image"] * 64).reshape(1, 8, 8, 1)),
        )
        return name, {"images": broken[rng.integers(4)]}
    if kind == 8:  # inputs missing, unknown, or of no signature
        wrong = (
            (name, {}), (name, {"image": good}), (name, {"images": good, "seed": np.int64([1, 2])}),
            ("no_such", {"images": good}), ("", {}), ("metadata", {"images": good}),
            ("metadata", {"query": np.int64([1])}),
        )  # fmt: skip
        return wrong[rng.integers(len(wrong))]
    if kind == 9:  # samples and alpha that certify nothing, or are out of range
        wrong = (
            {"n": np.int64(rng.choice([0, -1, 9, 20_001, 2**63 - 1, -(2**63)]))},
            {"alpha": np.float64(rng.choice([0, -0.1, 0.5, 1, math.nan, math.inf, 1e-300]))},
            {"n": np.int64([100] * (len(good) + 1))},
            {"n": np.int32(100)}, {"alpha": np.float32(0.01)}, {"n": np.float64(100)},
            {"alpha": np.full((MAX_BATCH_SIZE + 1, 3), 0.01)},
        )  # fmt: skip
        return "certify_custom", {"images": good, **wrong[rng.integers(len(wrong))]}
    # empty where it is not the batch that is empty
    shape = [1, 8, 8, 1]
    shape[rng.integers(1, 4)] = 0
    return name, {"images": np.zeros(shape, np.float32)}


def test_ten_thousand_malformed_requests_get_no_certificate(program, exported, digits, tmp_path):
    rng = np.random.default_rng(0)
    images = digits[0][:8]
    requests = [malformed(rng, images) for _ in range(10_000)]
    good = ("serving_default", {"images": images[:1]})
    answers = run(program, exported, [good, *requests, good], tmp_path)
    for request, answer in zip(requests, answers[1:-1], strict=True):
        assert answer.code == INVALID_ARGUMENT, (request, answer)
        assert not answer.outputs
    messages = {answer.message.partition("\n")[0] for answer in answers[1:-1]}
    # Messages are constants, or have shapes in them: none shows a pixel.
    assert not [message for message in messages if "nan" in message.lower() or "e+30" in message]
    # It still answers, and holds no more memory than before but for the largest request (2008 images of 256 bytes).
    assert [answers[0].code, answers[-1].code] == [0, 0]
    assert answers[-1].peak - answers[0].peak < 64 * 1024


def test_an_empty_batch_has_empty_answers(restarts):
    for name in TAKE_IMAGES:
        assert {len(values) for values in restarts[1][0][f"empty {name}"].outputs.values()} == {0}


def test_optional_inputs_are_scalars_or_one_an_image(restarts):
    answers = [restarts[1][0][name].outputs for name in ("certify_custom", "50 samples", "own samples")]
    assert [outputs["votes"].sum(axis=1).tolist() for outputs in answers] == [[N] * 6, [50] * 6, [30, 60, 90] * 2]
    columns = (answers[2][name] for name in ("predicted_class", "votes", "p_lower"))
    for predicted, votes, p_lower in zip(*columns, strict=True):
        if predicted >= 0:
            bound = special.betaincinv(votes[predicted], votes.sum() - votes[predicted] + 1, 0.01)
            assert p_lower == pytest.approx(bound, abs=1e-10)
