"""A comparison as Markdown: what was compared, the table of metrics, where the texts part. Pure."""

from collections.abc import Mapping
from typing import Any

from playground.bench.compare.plan import LETTERS
from playground.ui.comparing import view


def render(record: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    """The whole comparison as one document; names are shown, whatever was hidden on the page."""
    shown = view.result(record, {**setup, "blind": False})
    lines = [f"# {_inline(shown['title'])}", "", f"{record['created']} · {shown['machine']}", "", shown["protocol"], ""]
    for column in shown["columns"]:
        differs = ", ".join(f"{one['label']}: {one['value']}" for one in column["differs"])
        said = f"- **{column['letter']}** {_inline(column['name'])}" + (f" ({_inline(differs)})" if differs else "")
        lines.append(said + (f": {_inline(column['error'])}" if column["error"] else ""))
    lines += ["", *_table(shown, len(record["sides"]))]
    for number, bands in enumerate(shown["bands"], start=1):
        lines += ["", f"Prompt {number}: {_inline(shown['prompts'][number - 1][:120])}", ""]
        lines += [f"- {_inline(band['text'])}" for band in bands]
    return "\n".join(lines).rstrip() + "\n"


def _table(shown: Mapping[str, Any], sides: int) -> list[str]:
    letters = LETTERS[:sides]
    head = [f"median of n = {shown['n']}, 95 % interval", *letters, *(f"{letter} against A" for letter in letters[1:])]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for row in shown["table"]:
        cells = ["—" if cell is None else _cell(cell) for cell in row["cells"]]
        against = ["" if one is None else _joined(one["text"], one["interval"]) for one in row["against"][1:]]
        lines.append(_row([row["label"], *cells, *against]))
    return lines


def _cell(cell: Mapping[str, Any]) -> str:
    return _joined(" ".join(filter(None, (cell["number"], cell["unit"]))), cell["interval"], cell["note"])


def _joined(text: str, *more: str | None) -> str:
    extra = ", ".join(filter(None, more))
    return f"{text} ({extra})" if extra else text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _inline(text: str) -> str:
    """One line that Markdown takes as text."""
    line = " ".join(text.split())
    return "".join(f"\\{char}" if char in "\\`*_[]<>#" else char for char in line)
