"""The networks compute what the authors' compute: held against NumPy in float64, and torch where it is installed."""

import keras
import numpy as np
import pytest

from macer_tf import networks, torch_checkpoints

TOLERANCE = 1e-4  # of a logit
DEPTHS = (20, 110)


class Reference:
    """A forward pass in NumPy, float64, with a Keras model's weights, taken by the names of its layers.

    With `training`, batch norm takes the statistics of the batch and `moving` collects the moving ones by layer.
    """

    def __init__(self, model, training=False):
        self.weights = {
            layer.name: [weight.astype(np.float64) for weight in layer.get_weights()] for layer in model.layers
        }
        self.training = training
        self.moving = {}

    def convolve(self, x, name, stride=1, padding=0):
        kernel, *bias = self.weights[name]
        x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True) + sum(bias)

    def normalize(self, x, name):
        gamma, beta, mean, variance = self.weights[name]
        if self.training:
            pixels = x.reshape(-1, x.shape[-1])
            self.moving[name] = 0.9 * mean + 0.1 * pixels.mean(0), 0.9 * variance + 0.1 * pixels.var(0, ddof=1)
            mean, variance = pixels.mean(0), pixels.var(0)
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def dense(self, x, name):
        kernel, bias = self.weights[name]
        return x @ kernel + bias

    def lenet(self, x):
        for name in ("conv1", "conv2"):
            x = np.maximum(self.convolve(x, name), 0)
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        return self.dense(np.maximum(self.dense(x.reshape(len(x), -1), "fc1"), 0), "fc2")

    def cifar_resnet(self, x, depth):
        x = np.maximum(self.normalize(self.convolve(x, "conv1", padding=1), "bn1"), 0)
        for stage in (1, 2, 3):
            for block in range((depth - 2) // 6):
                stride, name = 1 + (stage > 1 and block == 0), f"layer{stage}.{block}"
                residual = self.normalize(self.convolve(x, f"{name}.conv1", stride, 1), f"{name}.bn1")
                residual = self.convolve(np.maximum(residual, 0), f"{name}.conv2", padding=1)
                residual = self.normalize(residual, f"{name}.bn2")
                if stride == 2:
                    x = self.normalize(self.convolve(x, f"{name}.downsample.0", 2), f"{name}.downsample.1")
                x = np.maximum(x + residual, 0)
        return self.dense(x.mean((1, 2)), "fc")


def randomize(model):
    """Weights unlike their initial values, with residual branches small enough for 54 of them to add up."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            low, high = (0.1, 0.3) if layer.name.endswith(".bn2") else (0.5, 1.0)
            layer.set_weights(
                [
                    rng.uniform(low, high, size),
                    rng.normal(0, 0.1, size),
                    rng.normal(0, 0.1, size),
                    rng.uniform(0.5, 1.5, size),
                ]
            )
        elif getattr(layer, "bias", None) is not None:
            layer.set_weights([layer.get_weights()[0], rng.normal(0, 0.1, layer.bias.shape)])


def images_for(model, count=3):
    return np.random.default_rng(1).random((count, *model.input_shape[1:]), np.float32)


def assert_logits(got, expected):
    assert np.std(expected) > 0.05  # or agreement would mean little
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def assert_moving_statistics(model, expected):
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {norm.name for norm in norms} == set(expected)
    for norm in norms:
        mean, variance = expected[norm.name]
        np.testing.assert_allclose(norm.moving_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-4)


def test_lenet_agrees_with_numpy():
    keras.utils.set_random_seed(0)
    model = networks.lenet()
    randomize(model)
    images = images_for(model)
    assert_logits(model(images, training=False).numpy(), Reference(model).lenet(images))
    assert_logits(model(images, training=True).numpy(), Reference(model).lenet(images))


@pytest.mark.parametrize("depth", DEPTHS)
def test_cifar_resnet_agrees_with_numpy(depth):
    keras.utils.set_random_seed(0)
    model = networks.cifar_resnet(depth)
    randomize(model)
    images = images_for(model)
    assert_logits(model(images, training=False).numpy(), Reference(model).cifar_resnet(images, depth))
    reference = Reference(model, training=True)
    expected = reference.cifar_resnet(images, depth)
    assert_logits(model(images, training=True).numpy(), expected)
    assert_moving_statistics(model, reference.moving)
    # After that step, the network that is served has other batch norms.
    assert_logits(model(images, training=False).numpy(), Reference(model).cifar_resnet(images, depth))


def torch_lenet(torch):
    nn = torch.nn
    layers = {
        "conv1": [nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)],
        "conv2": [nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()],
        "fc1": [nn.Linear(800, 500), nn.ReLU()],
        "fc2": [nn.Linear(500, 10)],
    }
    network = nn.Sequential()
    for name, (weighted, *others) in layers.items():
        network.add_module(name, weighted)
        for number, other in enumerate(others):
            network.add_module(f"{name}_{number}", other)
    return network


def torch_resnet(torch, blocks, widths, expansion, stem, classes):
    """A residual network of torch modules under the names that the released checkpoints have."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            # (filters, size, stride) of each convolution: two of 3x3, or 1x1, 3x3, 1x1.
            wide = [(width, 3, stride), (width, 3, 1)]
            if expansion > 1:
                wide = [(width, 1, 1), (width, 3, stride), (width * expansion, 1, 1)]
            self.count, self.downsample, out = len(wide), None, width * expansion
            if stride > 1 or channels != out:
                shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))
            for number, (filters, size, step) in enumerate(wide, start=1):
                setattr(self, f"conv{number}", nn.Conv2d(channels, filters, size, step, size // 2, bias=False))
                setattr(self, f"bn{number}", nn.BatchNorm2d(filters))
                channels = filters

        def forward(self, x):
            shortcut = x if self.downsample is None else self.downsample(x)
            for number in range(1, self.count + 1):
                x = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))
                x = torch.relu(x if number < self.count else x + shortcut)
            return x

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            channels, size, stride, self.pool = stem
            self.conv1 = nn.Conv2d(3, channels, size, stride, size // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(channels)
            self.stages = len(blocks)
            for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
                stage_blocks = []
                for block in range(count):
                    stage_blocks.append(Block(channels, width, 1 + (stage > 1 and block == 0)))
                    channels = width * expansion
                setattr(self, f"layer{stage}", nn.Sequential(*stage_blocks))
            self.fc = nn.Linear(channels, classes)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            if self.pool:
                x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
            for stage in range(1, self.stages + 1):
                x = getattr(self, f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def torch_pair(torch, name):
    """(the torch network with random weights, the Keras network to load them into)."""
    if name == "lenet":
        return torch_lenet(torch), networks.lenet()
    if name == "resnet50":
        stages, widths = (3, 4, 6, 3), (64, 128, 256, 512)
        return torch_resnet(torch, stages, widths, 4, (64, 7, 2, True), 12), networks.resnet50((64, 64, 3), 12)
    count = (int(name.removeprefix("cifar_resnet")) - 2) // 6
    reference = torch_resnet(torch, (count,) * 3, (16, 32, 64), 1, (16, 3, 1, False), 10)
    return reference, networks.build(name, (32, 32, 3), 10)


@pytest.mark.parametrize("name", ["lenet", "cifar_resnet20", "cifar_resnet110", "resnet50"])
def test_agrees_with_torch_through_a_checkpoint(name, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    reference, model = torch_pair(torch, name)
    last = ".bn3." if name == "resnet50" else ".bn2."
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if "bn" in key or "downsample.1" in key:
                low, high = {
                    "weight": (0.1, 0.3) if last in key else (0.5, 1.0),
                    "bias": (-0.2, 0.2),
                    "running_mean": (-0.2, 0.2),
                    "running_var": (0.5, 1.5),
                }.get(key.rpartition(".")[2], (0, 1))
                if tensor.is_floating_point():
                    tensor.uniform_(low, high)
    torch.save({"net": reference.state_dict()}, tmp_path / "440.pth")
    assert torch_checkpoints.load(tmp_path / "440.pth", model) is model
    trainable = sum(tensor.numel() for tensor in reference.parameters())
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == trainable

    images = images_for(model)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for training in (False, True, False):
        reference.train(training)
        with torch.no_grad():
            expected = reference(channels_first).numpy()
        assert_logits(model(images, training=training).numpy(), expected)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    norms = [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]
    assert_moving_statistics(model, {n: (state[f"{n}.running_mean"], state[f"{n}.running_var"]) for n in norms})
