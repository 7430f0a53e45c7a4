"""Follows what workers record while they draw."""

import threading
import time

from pipeline.cli.console import Progress

_SECONDS_BETWEEN_POLLS = 1.0


class Follower:
    """Follows what workers record, in a thread that also shows how far they are.

    No local runner of Beam says how far it is, and no portable one does before its end.

    Args:
        tally: `Tally`, which receives the votes.
        reader: `LedgerReader` or `BundleReader`.

    Attributes:
        error: what stopped the thread, or None.
        taken: how many pieces and failures were recorded.
    """

    def __init__(self, tally, reader):
        self._tally, self._reader, self.taken = tally, reader, 0
        self._by_images = tally.plan.radii is not None  # how many samples they will need is not known
        self._progress = Progress("Certification", *self._state()[::-1])
        self._started, self._first_held = time.monotonic(), tally.held
        self._lock, self._stop, self.error = threading.Lock(), threading.Event(), None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._stop.set()
        self._thread.join()
        if kind is None:
            done, total = self._state()
            self._progress.finish(done, self._details(), total)
        self._progress.close()

    def poll(self):
        """Takes what was recorded since the last call."""
        with self._lock:
            pieces, failures = self._reader.poll()
            self._tally.take(pieces, failures)
            self.taken += len(pieces) + len(failures)

    def _follow(self):
        while not self._stop.wait(_SECONDS_BETWEEN_POLLS):
            try:
                self.poll()
                done, total = self._state()
                self._progress.update(done, self._details(), total)
            except Exception as error:  # kept for the thread that waits for the workers
                self.error = error
                return

    def _state(self):
        """How much is done, and of how much."""
        if self._by_images:
            return self._done(), self._tally.num_images
        return self._tally.held, self._tally.most

    def _done(self):
        return self._tally.outcomes.total() + len(self._tally.failures)

    def _details(self):
        tally = self._tally
        rate = (tally.held - self._first_held) / (time.monotonic() - self._started)
        outcomes = [(count, name) for name, count in sorted(tally.outcomes.items())]
        outcomes += [(len(tally.failures), "failed")] if tally.failures else []
        return ", ".join(
            [
                f"{tally.held:,} samples, {rate:,.0f} per second",
                f"{self._done():,} of {tally.num_images:,} images",
                *(f"{count:,} {name}" for count, name in outcomes),
            ]
        )
