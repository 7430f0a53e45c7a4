import os
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from macer_tf import networks, torch_checkpoints
from macer_tf.model import MACERModel

torch = pytest.importorskip("torch")


def norm(name, size):
    shapes = {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def lenet_shapes():
    return {
        "conv1.weight": (20, 1, 5, 5), "conv1.bias": (20,), "conv2.weight": (50, 20, 5, 5), "conv2.bias": (50,),
        "fc1.weight": (500, 800), "fc1.bias": (500,), "fc2.weight": (10, 500), "fc2.bias": (10,),
    }  # fmt: skip


def resnet_shapes(depth, classes=10):
    shapes = {"conv1.weight": (16, 3, 3, 3), **norm("bn1", 16)}
    channels = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, channels, 3, 3), **norm(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            if channels != width:
                shapes |= {
                    f"{name}.downsample.0.weight": (width, channels, 1, 1),
                    **norm(f"{name}.downsample.1", width),
                }
            channels = width
    return {**shapes, "fc.weight": (classes, 64), "fc.bias": (classes,)}


def resnet50_shapes(classes):
    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name, sizes = f"layer{stage}.{block}", ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
            for number, (out, into, size) in enumerate(sizes, start=1):
                shapes |= {f"{name}.conv{number}.weight": (out, into, size, size), **norm(f"{name}.bn{number}", out)}
            if block == 0:
                shapes |= {f"{name}.downsample.0.weight": (4 * width, channels, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            channels = 4 * width
    return {**shapes, "fc.weight": (classes, 2048), "fc.bias": (classes,)}


def state_dict(shapes, prefix=""):
    """Tensors without two equal values in one network, small enough for finite logits."""
    rng, state = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[prefix + name] = torch.tensor(1234)
        else:
            state[prefix + name] = torch.from_numpy(rng.uniform(0.01, 0.1, shape).astype(np.float32))
    return state


def save(path, state, **options):
    torch.save(
        {"epoch": 90, "arch": "cifar_resnet20", "state_dict": state, "optimizer": {"lr": [0.1]}}, path, **options
    )
    return path


@pytest.fixture
def resnet8():
    """(a network, a checkpoint's tensors for it)."""
    return networks.cifar_resnet(8), state_dict(resnet_shapes(8))


def assert_holds(model, state, prefix=""):
    """Every variable, held against the tensor it must come from."""
    used = set()
    for layer in model.layers:
        for variable in layer.weights:
            part = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}.get(variable.name)
            part = part or {"moving_mean": "running_mean", "moving_variance": "running_var"}[variable.name]
            used.add(f"{layer.name}.{part}")
            tensor, got = state[f"{prefix}{layer.name}.{part}"].numpy(), variable.numpy()
            if layer.name == "fc1" and part == "weight":  # Keras' inputs are [4, 4, 50] flattened, torch's [50, 4, 4].
                got = got.reshape(4, 4, 50, 500).transpose(3, 2, 0, 1).reshape(500, 800)
            elif tensor.ndim > 1:
                got = np.moveaxis(got, (-1, -2), (0, 1))
            np.testing.assert_array_equal(got, tensor)
    counts = {name for name in state if name.endswith("num_batches_tracked")}
    assert {prefix + name for name in used} == state.keys() - counts


@pytest.mark.parametrize("key", ["net", "state_dict", "model", None])
def test_lenet(tmp_path, key):
    model, state = networks.lenet(), state_dict(lenet_shapes())
    torch.save({key: state, "epoch": 440} if key else state, tmp_path / "440.pth")
    assert torch_checkpoints.load(tmp_path / "440.pth", model) is model
    assert_holds(model, state)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_cifar_resnet_with_prefixes_and_in_both_file_formats(tmp_path, resnet8, prefix, zipped):
    model, _ = resnet8
    state = state_dict(resnet_shapes(8), prefix)
    path = save(tmp_path / "checkpoint.pth.tar", state, _use_new_zipfile_serialization=zipped)
    assert torch_checkpoints.load(str(path), model) is model
    assert_holds(model, state, prefix)


def test_resnet50_behind_a_normalisation(tmp_path):
    model, prefix = networks.resnet50((32, 32, 3), 5), "1.module."
    state = state_dict(resnet50_shapes(5), prefix)
    assert sum(t.numel() for t in state.values()) == 25_557_032 - 2049 * 995 + 53_120 + 53
    path = save(tmp_path / "checkpoint.pth.tar", state)
    normalized = torch_checkpoints.load(path, model, normalization="imagenet")
    assert_holds(model, state, prefix)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    by_hand = (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalized(images), model(by_hand), rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("prefix", ["1.", "1.module.", "module.1."])
def test_the_normalisation_becomes_a_layer(tmp_path, resnet8, prefix):
    model, _ = resnet8
    path = save(tmp_path / "checkpoint.pth.tar", state_dict(resnet_shapes(8), prefix))
    normalized = torch_checkpoints.load(path, model, normalization="cifar10")
    assert normalized.input_shape == (None, 32, 32, 3)
    assert normalized.output_shape == (None, 10)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    by_hand = (images - np.float32([0.4914, 0.4822, 0.4465])) / np.float32([0.2023, 0.1994, 0.2010])
    expected = model(by_hand).numpy()
    np.testing.assert_allclose(normalized(images), expected, rtol=1e-4)
    # It trains (the weights are the network's own), is saved whole, and can be loaded again.
    assert [id(v) for v in normalized.trainable_variables] == [id(v) for v in model.trainable_variables]
    MACERModel(normalized, 0.25)
    normalized.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(images), expected, rtol=1e-4)
    # Loading once more, into a network that is already part of another model, changes nothing.
    again = torch_checkpoints.load(path, model, normalization="cifar10")
    np.testing.assert_array_equal(again(images), normalized(images))


def test_the_normalisation_keeps_its_constants_in_bfloat16(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = networks.cifar_resnet(8)
        path = save(tmp_path / "checkpoint.pth.tar", state_dict(resnet_shapes(8), "1."))
        normalized = torch_checkpoints.load(path, model, normalization="cifar10")
    finally:
        keras.config.set_dtype_policy("float32")
    layer = normalized.layers[1]
    image = np.full((1, 32, 32, 3), 0.7, np.float32)
    assert normalized(image).dtype == "bfloat16"
    expected = (0.7 - np.array([0.4914, 0.4822, 0.4465])) / [0.2023, 0.1994, 0.2010]
    np.testing.assert_allclose(layer(image)[0, 0, 0], expected, rtol=1e-5)


def test_a_pair_or_the_checkpoints_own_constants(tmp_path, resnet8):
    model, _ = resnet8
    means, deviations = (0.4, 0.5, 0.6), (0.1, 0.2, 1.0)
    bare = save(tmp_path / "bare.pth", state_dict(resnet_shapes(8), "module."))
    state = {"0.means": torch.tensor(means), "0.sds": torch.tensor(deviations)}
    own = save(tmp_path / "own.pth", {**state, **state_dict(resnet_shapes(8), "1.module.")})
    image = np.full((1, 32, 32, 3), 0.5, np.float32)
    for given in (
        torch_checkpoints.load(bare, model, normalization=(means, deviations)),
        torch_checkpoints.load(own, model),
        torch_checkpoints.load(own, model, normalization=(means, deviations)),
    ):
        # (0.5 - 0.4) / 0.1 = 1, (0.5 - 0.5) / 0.2 = 0, (0.5 - 0.6) / 1.0 = -0.1.
        np.testing.assert_allclose(given.layers[1](image)[0, 0, 0], [1, 0, -0.1], atol=1e-6)
    with pytest.raises(ValueError, match="holds its own, different normalisation; pass normalization=None"):
        torch_checkpoints.load(own, model, normalization="cifar10")
    half = save(tmp_path / "half.pth", {"0.means": torch.tensor(means), **state_dict(resnet_shapes(8))})
    with pytest.raises(ValueError, match=r"1 left over \(0.means\)"):
        torch_checkpoints.load(half, model)


def refused(match, path, model, **options):
    """Asserts one line of complaint, and that no weight has changed."""
    before = model.get_weights()
    with pytest.raises(ValueError, match=match) as caught:
        torch_checkpoints.load(path, model, **options)
    assert "\n" not in str(caught.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_behind_a_normalisation_that_is_not_given(tmp_path, resnet8):
    path = save(tmp_path / "checkpoint.pth.tar", state_dict(resnet_shapes(8), "1."))
    refused("was trained behind a normalisation layer, whose constants it does not hold", path, resnet8[0])


@pytest.mark.parametrize(
    ("normalization", "match"),
    [
        ("mnist", r"must be cifar10, imagenet, a pair .* or None. Received: mnist"),
        (((0.5,), (0.5,)), r"for each of the network's 3 channels. Received: \[0.5\], \[0.5\]"),
        (((0, 0, 0), (1, 1, 0)), "standard deviation above 0"),
        (((0, np.inf, 0), (1, 1, 1)), r"both finite, .*\[0.0, inf, 0.0\]"),
        (((0, 0, 0), (1, np.inf, 1)), r"both finite, .*\[1.0, inf, 1.0\]"),
        (((0, 0, 0),), "must hold a mean and a standard deviation"),
        (5, "must be a pair of means and standard deviations, or a name. Received: 5"),
        (("a", "b"), "must be a pair of means and standard deviations, or a name. Received: "),
    ],
)
def test_bad_normalization(tmp_path, resnet8, normalization, match):
    model, state = resnet8
    refused(match, save(tmp_path / "a.pth", state), model, normalization=normalization)


def test_another_depth_or_network(tmp_path, resnet8):
    model, state = resnet8
    deeper = save(tmp_path / "deeper.pth", state_dict(resnet_shapes(20)))
    # Each of the 6 further blocks holds 2 convolutions and 2 batch norms of 5 tensors.
    refused(
        r"does not fit cifar_resnet8: 0 missing, 72 left over \(layer1.1.conv1.weight, .*\); "
        r"build the network it was trained with, macer_tf.networks.build\('cifar_resnet20', ...\)",
        deeper, model,
    )  # fmt: skip
    shallower = save(tmp_path / "shallower.pth", state)
    refused(r"60 missing .*build\('cifar_resnet8', ...\)", shallower, networks.cifar_resnet(20))
    refused(r"build\('lenet', ...\)", save(tmp_path / "lenet.pth", state_dict(lenet_shapes())), model)
    refused(r"build\('resnet50', ...\)", save(tmp_path / "resnet50.pth", state_dict(resnet50_shapes(5))), model)
    other = save(tmp_path / "other.pth", {"weight": torch.ones(2, 2)})
    refused(
        r"\(conv1.weight, bn1.weight, bn1.bias, ...\), 1 left over \(weight\); the file is incomplete, or anot",
        other,
        model,
    )


def test_missing_extra_and_misshapen_tensors(tmp_path, resnet8):
    model, state = resnet8
    missing = {name: tensor for name, tensor in state.items() if name != "layer2.0.bn1.running_var"}
    refused(
        r"1 missing \(layer2.0.bn1.running_var\), 0 left over; the file is incomplete",
        save(tmp_path / "missing.pth", missing), model,
    )  # fmt: skip
    extra = {**state, "layer1.0.conv3.bias": torch.ones(3), "conv1.num_batches_tracked": torch.tensor(1)}
    refused(r"2 left over \(layer1.0.conv3.bias, conv1.num_batches_tracked\)", save(tmp_path / "e.pth", extra), model)
    both = {**state, "module.fc.bias": torch.ones(10)}
    refused(r"different prefixes \('', 'module.'\)", save(tmp_path / "both.pth", both), model)
    classes = save(tmp_path / "classes.pth", state_dict(resnet_shapes(8, 1000)))
    refused(r"fc.weight has shape \(1000, 64\), expected \(10, 64\); build the network with", classes, model)
    transposed = {**state, "fc.weight": state["fc.weight"].T}
    refused(r"fc.weight has shape \(64, 10\), expected", save(tmp_path / "t.pth", transposed), model)
    side = save(tmp_path / "side.pth", state_dict(lenet_shapes()))
    refused(r"fc1.weight has shape \(500, 800\), expected \(500, 1250\)", side, networks.lenet((32, 32, 1)))
    nan = {**state, "fc.bias": torch.full((10,), torch.nan)}
    refused("is damaged: fc.bias holds NaN or Inf", save(tmp_path / "nan.pth", nan), model)


def test_tensors_of_before_torch_0_4_1_and_in_half_precision(tmp_path, resnet8):
    model, state = resnet8
    state = {n: t.half() for n, t in state.items() if not n.endswith("num_batches_tracked")}
    torch_checkpoints.load(save(tmp_path / "half.pth", state), model)
    assert_holds(model, {name: tensor.float() for name, tensor in state.items()})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file(tmp_path, resnet8, zipped):
    model, state = resnet8
    path = save(tmp_path / "a.pth", state, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-100], b"", b"<html>404 Not Found</html>", bytes(range(256))):
        path.write_bytes(content)
        refused("a.pth is damaged or not a PyTorch checkpoint; download it again", path, model)


def test_no_file(tmp_path, resnet8):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth"):
        torch_checkpoints.load(tmp_path / "nowhere.pth", resnet8[0])
    with pytest.raises(IsADirectoryError):
        torch_checkpoints.load(tmp_path, resnet8[0])


class Malicious:
    """Unpickled, it creates the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused(tmp_path, resnet8, zipped):
    model, state = resnet8
    trap = tmp_path / "sprung"
    checkpoint = {"state_dict": state, "arch": Malicious(trap)}
    torch.save(checkpoint, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    refused(
        r"evil.pth is refused: it holds more than weights \(\w+.mkdir\), which could run code",
        tmp_path / "evil.pth",
        model,
    )
    assert not trap.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert trap.exists()  # the trap works


def test_plain_pickles_and_whole_modules_are_refused(tmp_path, resnet8):
    model, _ = resnet8
    trap = tmp_path / "sprung"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malicious(trap)))
    refused("is damaged or not a PyTorch checkpoint|is refused", tmp_path / "evil.pkl", model)
    assert not trap.exists()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(r"holds more than weights \(torch.nn.modules.linear.Linear\)", tmp_path / "module.pth", model)
    torch.save({"epoch": 3, "optimizer": {"lr": [0.1]}}, tmp_path / "empty.pth")
    refused("holds no weights: no state_dict, alone or under state_dict, net, model. Found: epoch, optimizer",
            tmp_path / "empty.pth", model)  # fmt: skip
    torch.save([1, 2], tmp_path / "list.pth")
    refused("Found: list", tmp_path / "list.pth", model)


def test_what_weights_are_not_loaded_into(tmp_path, resnet8):
    model, state = resnet8
    path = save(tmp_path / "a.pth", state)
    for other in (MACERModel(model, 0.25), torch_checkpoints.load(path, model, "cifar10"), keras.Sequential()):
        with pytest.raises(ValueError, match=r"a network of macer_tf.networks, before anything is wrapped") as caught:
            torch_checkpoints.load(path, other)
        assert "\n" not in str(caught.value)
    refused(r"8 missing \(conv2d", path, networks.small_cnn())


def test_without_torch_it_says_so(monkeypatch, tmp_path, resnet8):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch") as caught:
        torch_checkpoints.load(Path(tmp_path / "a.pth"), resnet8[0])
    assert "\n" not in str(caught.value)
