"""Memory that a step frees stays with the process for the next step."""

import ctypes

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Whether this process now keeps what it frees; False where the C library cannot be told (musl, macOS).

    glibc maps every block above 32 MiB anew and gives the end of its heap back, so that each training step meets its
    activations as pages which the system first has to clear, about a tenth of its time. A process that keeps them
    stays as large as it ever was. torch's CPU tensors come from malloc; what mallopt says holds for all of the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])
