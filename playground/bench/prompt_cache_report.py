"""The prompt-cache benchmark's result for people."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def render(data: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `prompt_cache.run_benchmark`."""
    console = console or Console()
    here, versions = data["machine"], data["versions"]
    for name, text in data["definitions"].items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)
    console.print(
        f"\n{here['processor']}, {here['torch_threads']} threads, {data['plan']['repeats']} pairs; torch "
        f"{versions['torch']}, commit {versions['commit'] or '—'}\n",
        highlight=False,
    )
    console.print(_first_tokens(data["first_tokens"]))
    for line in data["equality"]:
        console.print(
            f"{line['model']}, {line['tier']}: the same tokens as without a cache in {line['identical']} of "
            f"{line['requests']} replies, {line['cached_tokens']} prompt tokens from the cache",
            highlight=False,
        )
    console.print()
    if "skipped" in data["replay"]:
        console.print(data["replay"]["skipped"], highlight=False)
        return
    console.print(_replay(data["replay"]))


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _first_tokens(rows: list[dict[str, Any]]) -> Table:
    columns = ("shared", "cold ms", "warm ms", "ratio", "range", "reach")
    table = _table("Time to the first token, medians", ("model", "from"), columns)
    for row in rows:
        verdict = {None: "—", True: "yes", False: "no"}[row["reached"]]
        table.add_row(
            row["model"],
            row["tier"],
            str(row["shared"]),
            f"{row['cold_median'] * 1000:.1f}",
            f"{row['warm_median'] * 1000:.1f}",
            f"{row['ratio']:.1%}",
            f"{row['ratio_min']:.0%}–{row['ratio_max']:.0%}",
            verdict if row["reach"] is None else f"≤ {row['reach']:.0%}: {verdict}",
        )
    return table


def _replay(played: dict[str, Any]) -> Table:
    first = played["rows"][0]
    title = f"{played['trace']}, {first['requests']} requests, lengths divided by {first['divisor']}, {played['model']}"
    columns = ("tokens", "possible", "found", "written", "off ms", "on ms", "same")
    table = _table(title, ("shared",), columns)
    for row in played["rows"]:
        total = row["prompt_tokens"]
        table.add_row(
            row["scenario"],
            str(total),
            f"{row['possible_tokens'] / total:.1%}",
            f"{row['cached_tokens'] / total:.1%}",
            f"{row['cache_write_tokens'] / total:.1%}",
            f"{row['first_token_off'] * 1000:.1f}",
            f"{row['first_token_on'] * 1000:.1f}",
            str(row["identical"]),
        )
    return table
