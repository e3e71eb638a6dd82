"""Has the machine's ceilings measured for whatever engine there is, once somebody looks at the page and it rests."""

from pathlib import Path

from playground.telemetry.ceilings import CACHE, CeilingProbe, RatesFile
from playground.ui.host import EngineHost, Serving


class MachineRatesFollower:
    """Gives the feed of the host what is, or was once, measured on the engine's device. `close` ends it."""

    def __init__(self, host: EngineHost, cache: Path = CACHE) -> None:
        self._host = host
        self._file = RatesFile(cache)
        self._probes: dict[int, CeilingProbe] = {}
        self._stop_following = host.follow(self._arrives, self._leaves)

    def close(self) -> None:
        """May be called twice."""
        self._stop_following()
        while self._probes:
            self._probes.popitem()[1].stop()

    def _leaves(self, serving: Serving) -> None:
        probe = self._probes.pop(id(serving), None)
        if probe is not None:
            probe.stop()

    def _arrives(self, serving: Serving) -> None:
        engine, feed = serving.engine, self._host.feed
        probe = self._probes[id(serving)] = CeilingProbe(
            engine,
            engine.config.device,
            engine.config.dtype,
            file=self._file,
            wanted=lambda: feed.num_readers > 0 and self._host.busy is None,
            found=lambda rates: feed.know_rates(engine, rates),
        )
        probe.start()
