"""What this machine's processor is slow at."""

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def notes_on(precision):
    """What to say about a Keras dtype policy that the processor can only emulate, one line each.

    TensorFlow computes 16-bit types with oneDNN, whose routines for them need AVX-512; for other x86 processors it
    widens and rounds every number.
    """
    if not precision.startswith("mixed_") or not _lacks_avx512():
        return []
    return [
        f"precision={precision}: this processor has no AVX-512, which 16-bit types need to be fast. Without a GPU, a "
        "training step takes several times as long as in float32."
    ]


def _lacks_avx512():
    """Whether this is an x86 processor without AVX-512; False where that cannot be told."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags is not None and "avx512f" not in flags
