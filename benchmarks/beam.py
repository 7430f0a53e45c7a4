"""What Beam adds to certification: the pipeline's way against a plain loop, interleaved on the same cores.

    python benchmarks/beam.py --network lenet

Both draw the same samples of the same images in the same forward passes, in float32. The loop keeps only the counts;
the pipeline loads the model, plans, fans out on Beam, writes ledgers and a shard, and certifies.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import whole
from benchmarks.interleaved import Rounds

SHAPES = {"lenet": (28, 28, 1), "cifar_resnet110": (32, 32, 3)}
SIGMA, N0, ALPHA = 0.25, 100, 0.001


def main(arguments=None):
    """Runs the rounds and prints what Beam adds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=SHAPES, default="lenet")
    parser.add_argument("--images", type=whole, default=40, help="images (default: 40)")
    parser.add_argument("--n", type=whole, default=20_000, help="estimation samples of each (default: 20000)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds (default: 5)")
    arguments = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        settings = (folder, arguments.network, arguments.images, arguments.n, arguments.threads)
        make(*settings[:3])
        rounds = Rounds(
            {"plain loop": (plain_loop, *settings), "pipeline": (pipeline, *settings)},
            arguments.rounds, 1, arguments.threads,
        )  # fmt: skip
    samples = arguments.images * (N0 + arguments.n)
    print(
        f"{arguments.network}, {samples:,} samples of {arguments.images} images, {arguments.threads} threads; {rounds}"
    )
    for name in ("plain loop", "pipeline"):
        print(f"  {name:<12}{rounds.median(name):8.2f} s, {1e6 * rounds.median(name) / samples:8.1f} us per sample")
    print(f"  Beam and the vote store add {100 * (rounds.ratio('pipeline', 'plain loop') - 1):.1f} %")


def make(folder, network, num_images):
    """Saves a network with random weights, and random images."""
    import keras
    import numpy as np

    from macer_tf import networks

    keras.utils.set_random_seed(0)
    networks.build(network, SHAPES[network], 10).save(Path(folder) / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (num_images, *SHAPES[network]), np.uint8)
    np.savez(Path(folder) / "images.npz", images=images)


def sampler(folder, network):
    """The `Sampler` of both."""
    from pipeline.certification.workers import Sampler
    from pipeline.data import sources

    source = sources.Archive(str(Path(folder) / "images.npz"), SHAPES[network])
    return Sampler(str(Path(folder) / "model.keras"), source, SIGMA, 0)


def plain_loop(folder, network, num_images, n, threads):
    """A step that draws image by image, in one Python thread."""
    from macer_tf import noise

    loaded = sampler(folder, network).load()

    def step():
        for example_id in range(num_images):
            image = loaded.images.image(example_id)
            for stream, samples in ((noise.SELECTION, N0), (noise.ESTIMATION, n)):
                loaded.smoothed.count(image, example_id, stream, 0, samples)

    return step


def pipeline(folder, network, num_images, n, threads):
    """A step that draws as `pipeline.certify` does."""
    from pipeline.certification import certificate_files, driver
    from pipeline.certification.sampling_plan import SamplingPlan
    from pipeline.certification.vote_store import VoteStore

    plan = SamplingPlan(N0, n, ALPHA)

    def step():
        with tempfile.TemporaryDirectory(dir=folder) as output, contextlib.redirect_stdout(io.StringIO()):
            store = VoteStore(Path(output) / "votes", {}, plan.first_look, 10)
            outcome = driver.run(sampler(folder, network), range(num_images), 10, plan, store, num_workers=threads)
            certificate_files.write(output, outcome, plan, SIGMA, "float32")

    return step


if __name__ == "__main__":
    main()
