"""`python -m playground.bench`: the benchmarks without the rest of the command line."""

from playground.bench.command import bench_app
from playground.terminal import run

if __name__ == "__main__":
    run(bench_app)
