"""What the live views cost in the browser: the real page, given the frames of a full engine at their full rate.

`python -m tests.ui.budget` prints it for the bundled model's page, the widest case first.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playground.engine.events import BlockEvent, ScheduledSlice, StepEvent
from playground.engine.kv_snapshot import KVSnapshot, RequestBlocks
from playground.telemetry.frames import LiveEvent, LiveState
from playground.telemetry.memory import MemorySample
from playground.telemetry.pace import FRAME_HZ
from playground.telemetry.rates import NS_PER_S
from playground.telemetry.roofline import Ceilings, ModelWork
from playground.telemetry.rows import EngineFacts
from tests.ui.browser import Tab, chromium, served

BLOCKS, BLOCK_SIZE = 4096, 16
REQUESTS, BLOCKS_EACH = 16, 150
STEPS_A_FRAME = 5
MS = 1_000_000

# Gives the page the frames, and the reply's tokens, at their rate; what the real engine says meanwhile is not heard.
PLAY = """async ([frames, hz]) => {
  const apply = Playground.Store.prototype.apply.bind(Playground.live);
  Playground.live.apply = () => true;
  document.querySelector('#live .message.live').hidden = false;
  const reply = document.querySelector('#live .by-token').playgroundView;
  const rows = [];
  const started = performance.now();
  for (const [index, text] of frames.entries()) {
    apply(JSON.parse(text));
    for (let n = 0; n < 5; n++) {
      rows.push([rows.length, ' word', n ? 'accepted' : 'corrected', index, index * 83, -0.5, n ? [] : ['other'], []]);
    }
    reply.set(rows.slice(), {ended: false});
    const wait = started + (index + 1) * 1000 / hz - performance.now();
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
  }
}"""

# So much work that how long it takes tells how fast the core is just now: half integers, half what is on a canvas.
WORK = """() => {
  let x = 1;
  for (let n = 0; n < 1e8; n++) x = (Math.imul(x, 1103515245) + 12345) | 0;
  const canvas = Object.assign(document.createElement('canvas'), {width: 400, height: 400}).getContext('2d');
  for (let n = 0; n < 2e5; n++) { canvas.fillStyle = n % 2 ? '#123' : '#456'; canvas.fillRect(n % 380, x % 7, 9, 9); }
  return x;
}"""
USUAL_WORK_SECONDS = 0.18
"""On an AMD EPYC core with nothing beside it, on which the live views take 18 to 20 % of its time."""


def frames(count: int) -> Iterator[str]:
    """An opening frame of 16 requests that hold 2,400 of 4,096 blocks, all others cached; then each request decodes."""
    facts = EngineFacts(
        model="m", num_blocks=BLOCKS, block_size=BLOCK_SIZE, block_bytes=8192.0, weights_bytes=20_000_000,
        max_num_seqs=REQUESTS, max_model_len=8192, work=ModelWork(1e7, 1e6, 1024.0, ((None, 8),), 20_000_000, 512.0),
        ceilings=Ceilings(1e11, 2e10, 1e10, "float32", "a processor"),
    )  # fmt: skip
    tables = [list(range(1 + n * BLOCKS_EACH, 1 + (n + 1) * BLOCKS_EACH)) for n in range(REQUESTS)]
    computed = [BLOCKS_EACH * BLOCK_SIZE - n for n in range(REQUESTS)]
    holders = tuple(RequestBlocks(n + 1, True, 2000, 0, 300, computed[n], 0, tuple(tables[n])) for n in range(REQUESTS))
    free = list(range(1 + REQUESTS * BLOCKS_EACH, BLOCKS + 1))
    state = LiveState(facts, 0)
    state.resync(KVSnapshot(0, BLOCKS, BLOCK_SIZE, tuple(free), holders))
    step_ns = round(NS_PER_S / FRAME_HZ / STEPS_A_FRAME)
    now_ns, step = 1, 0
    yield json.dumps(state.opening(now_ns))
    for _ in range(count):
        for _ in range(STEPS_A_FRAME):
            for event in _step(step, now_ns, step_ns, tables, computed, free):
                state.apply(event)
            now_ns, step = now_ns + step_ns, step + 1
        state.apply(MemorySample(now_ns, "process", 800 << 20, 24 << 30))
        yield json.dumps(state.frame(now_ns))


def _step(
    step: int, now_ns: int, length_ns: int, tables: list[list[int]], computed: list[int], free: list[int]
) -> Iterator[LiveEvent]:
    """A decode step of all requests, and the blocks that it took."""
    slices = []
    for n, table in enumerate(tables):
        if computed[n] == len(table) * BLOCK_SIZE:
            block_id = free.pop(0)
            yield BlockEvent(now_ns, "evict", block_id, 0)
            yield BlockEvent(now_ns, "alloc", block_id, 1, n + 1, None, len(table))
            table.append(block_id)
        slices.append(ScheduledSlice(n + 1, computed[n], 1, 1))
        computed[n] += 1
    times = (now_ns, 40_000, 0, 100_000, length_ns - 500_000, 200_000, 100_000)
    yield StepEvent(step, *times, 0, REQUESTS, 0, 0, REQUESTS, REQUESTS, 0, 0, 2400, 1696, 0, 38_000, tuple(slices))


def busy_share(tab: Tab, seconds: float) -> tuple[float, float]:
    """The share of one core's time that the page's own thread works while the views are fed: as measured, and at the
    usual speed of a core. A core that is shared with other machines may take half as long again for the same work."""
    fed = list(frames(round(seconds * FRAME_HZ)))
    tab.page.evaluate("Playground.views.show('speculation')")
    devtools = tab.context.new_cdp_session(tab.page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})  # time of the processor, not of the clock

    def busy_while(code: str, argument: Any = None) -> float:
        def busy() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

        before = busy()
        tab.page.evaluate(code, argument)
        return busy() - before

    work = busy_while(WORK)
    share = busy_while(PLAY, [fed, FRAME_HZ]) / seconds
    work = (work + busy_while(WORK)) / 2
    return share, share * min(1.0, USUAL_WORK_SECONDS / work)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, served(Path(folder)) as app:
        for width, height in ((2560, 1440), (1440, 900), (390, 844)):
            tab = Tab(browser, app.address, width=width, height=height)
            shares = [busy_share(tab, seconds=6) for _ in range(3)]
            said = ", ".join(f"{share:.1%} ({usual:.1%} at its usual speed)" for share, usual in shares)
            print(f"{width} x {height}: {said} of one core")
            tab.close()


if __name__ == "__main__":
    main()
