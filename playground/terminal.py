"""What every console command shares: errors as one line on stderr, and model text that cannot drive the terminal."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playground.errors import PlaygroundError

# Everything below the space but tab and newline, and the C1 range: what could move the cursor or change colours.
_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def run(command: Callable[[], object]) -> None:
    """Run a console command; what the user can mend is one line on stderr and exit status 1."""
    try:
        command()
    except PlaygroundError as error:
        print(f"playground: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader has gone, as with `| head`: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextmanager
def progress_line(first: str) -> Iterator[Callable[[str], None]]:
    """Where to say what is being done: one line that changes on a terminal, else a line each, on standard error."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


def printable(text: str) -> str:
    """`text` without control characters, escape sequences' starts among them."""
    return text.translate(_CONTROL)
