"""A tiny job with a known result, on workers that must have what the driver has."""

import json
import os
import sys
import time
import uuid
from collections import Counter
from importlib import metadata

import apache_beam as beam

from pipeline.certification.bundles import Mark
from pipeline.certification.engine import Job
from pipeline.utils import code, places
from pipeline.utils.errors import InputError

_ELEMENTS = 16
# Workers may have to be started for the first job, however soon a later job counts as lost.
_SECONDS_TO_START = 60.0
_CODE = "pipeline.certification.workers"


def about_here():
    """What must be the same in every process that draws: name -> version, or digest of code."""
    packages = ("apache-beam", "keras", "numpy", "tensorflow")
    return {
        "Python": ".".join(map(str, sys.version_info[:2])),
        **{name: metadata.version(name) for name in packages},
        "macer_tf (its code)": code.digest_of_ours(_CODE)[:16],
    }


class Answer(beam.DoFn):
    """Elements -> nothing; each bundle writes a file with what it got and what its worker has."""

    def __init__(self, mark, place):
        self._mark, self._place = mark, place

    def setup(self):
        self._mark.check()

    def start_bundle(self):
        self._got = []

    def process(self, element):
        self._got.append(element)

    def finish_bundle(self):
        answer = {"got": self._got, "about": about_here(), "worker": os.uname().nodename}
        places.write(places.join(self._place, f"{uuid.uuid4().hex}.json"), json.dumps(answer).encode())


def run(engine, place):
    """Runs the job, handing in below `place`.

    Raises:
        InputError: in one line, if the job fails, does not end or does not do what it must, or if a worker differs.
    """
    mark, answers = Mark(place), places.join(place, f"check-{uuid.uuid4().hex}")
    mark.set()
    try:
        _wait(engine, mark, answers)
        _compare(engine, [json.loads(places.read(path)) for path in places.files(answers)])
    finally:
        mark.remove()
        places.remove(places.files(answers))
        if not places.is_url(answers) and os.path.isdir(answers):
            os.rmdir(answers)


def _wait(engine, mark, answers):
    def build(pipeline):
        elements = pipeline | beam.Create(list(range(_ELEMENTS)))
        _ = elements | beam.Reshuffle() | beam.ParDo(Answer(mark, answers))

    started, patience = time.monotonic(), max(engine.patience, _SECONDS_TO_START)
    with Job(engine.options(), build) as job:
        while job.is_running():
            if time.monotonic() - started > patience:
                raise InputError(
                    f"{engine.runner} did not finish a job of {_ELEMENTS} elements within {patience:.0f} s: does it "
                    "have workers, and can it reach them?"
                )
        if job.failure:
            raise InputError(f"{engine.runner} cannot run a job here: {job.failure.line}")


def _compare(engine, answers):
    got = Counter(element for answer in answers for element in answer["got"])
    if set(got) != set(range(_ELEMENTS)):
        raise InputError(
            f"{engine.runner} says that a job is done, but {len(got)} of its {_ELEMENTS} elements came out where "
            "workers hand in votes: it cannot be trusted, or its workers do not share that folder."
        )
    here = about_here()
    for answer in answers:
        for name, version in here.items():
            if (there := answer["about"].get(name)) != version:
                raise InputError(
                    f"The worker on {answer['worker']} has another {name}: {there}; here it is {version}. Votes from "
                    "both would mix two classifiers; install the same there."
                )
