"""How often pictures are drawn: a steady rate that gives way when drawing them becomes work."""

FRAME_HZ = 12.0
SLOW_FRAME_HZ = 6.0
SLOW_BUILD_SECONDS = 0.040
"""A frame that took longer than this to build leaves the machine to the engine: the rate halves."""


def pause(build_seconds: float, hz: float = FRAME_HZ) -> float:
    """Seconds to wait before the next frame, given how long this one took to build."""
    rate = SLOW_FRAME_HZ if build_seconds > SLOW_BUILD_SECONDS else hz
    return max(0.0, 1.0 / rate - build_seconds)
