"""The speculation benchmark's result as one HTML file that needs nothing else: data, charts and plotly.js inside.

plotly.js is the copy that the installed `plotly` package ships. What is shown is drawn by `static/page.js` from the
same data that `--json` writes.
"""

import json
from importlib.resources import files
from typing import Any

# The file may load nothing, from nowhere: everything is in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def html(data: dict[str, Any]) -> str:
    """The page for a result of `run_benchmark`."""
    static = files("playground.bench.speculation") / "static"
    style = (static / "page.css").read_text(encoding="utf-8")
    script = (static / "page.js").read_text(encoding="utf-8")
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    shown = {**data, "rows": [{k: v for k, v in row.items() if k != "passes"} for row in data["rows"]]}
    embedded = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")  # no end tag can stand in it
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Speculative decoding, measured</title>
<style>
{style}</style>
</head>
<body>
<main id="page"></main>
<script type="application/json" id="data">{embedded}</script>
<script>{plotly}</script>
<script>
{script}</script>
</body>
</html>
"""
