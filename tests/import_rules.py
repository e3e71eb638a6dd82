"""Which part of the house may import which: read from the syntax tree, so that lazy imports inside functions count too.

Owns the layer table and the checker; `test_imports.py` runs it over the real tree and over planted violations.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

# Lower layers never import higher ones, and parts that share a layer do not import each other. A package's own modules
# may. "playground" is the package's `__init__`, the public API that everything above the engine may use.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"playground.errors"}),
    frozenset({"playground.validation", "playground.terminal"}),
    frozenset({"playground.config", "playground.sampling_params"}),
    frozenset({"kernels"}),
    frozenset({"playground.quantization"}),
    frozenset({"playground.models"}),
    frozenset({"playground.engine", "playground.training"}),
    frozenset({"playground"}),
    frozenset({"playground.info"}),
    frozenset({"playground.compression", "playground.telemetry"}),
    frozenset({"playground.bench", "playground.sessions"}),
    frozenset({"playground.server"}),
    frozenset({"playground.ui"}),
    frozenset({"playground.cli", "app"}),
    frozenset({"playground.__main__"}),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

TORCH_FREE = (
    *(
        f"playground.engine.{name}"
        for name in (
            "request",
            "holdings",
            "beam_search",
            "beam_group",
            "block_pool",
            "block_tables",
            "host_tier",
            "kv_snapshot",
            "pins",
            "scheduler",
        )
    ),
    *(f"playground.engine.speculation.{name}" for name in ("controller", "formula", "ngram", "suffix")),
)

# Heavy or optional libraries, and the only parts that may import them.
RESERVED = {
    "gradio": ("playground.ui", "app"),
    "sqlmodel": ("playground.sessions",),
    "sqlalchemy": ("playground.sessions",),
    "alembic": ("playground.sessions",),
    "typer": ("playground.cli", "playground.bench", "playground.compression", "playground.ui"),
}


def read_tree(root: Path) -> dict[str, str]:
    """Module name -> source of everything under `playground/` and `kernels/`, and `app.py`."""
    paths = [p for package in ("playground", "kernels") for p in sorted((root / package).rglob("*.py"))]
    paths += [root / "app.py"] if (root / "app.py").exists() else []
    return {module_name(p.relative_to(root)): p.read_text(encoding="utf-8") for p in paths}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: "playground.engine.scheduler" -> "playground.engine"."""
    pieces = module.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "playground" else pieces[0]


def imports_of(module: str, source: str, known: set[str]) -> Iterator[tuple[str, int]]:
    """Every absolute module name that `source` imports, with the line, wherever in the file it stands."""
    is_package = any(name.startswith(f"{module}.") for name in known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            for alias in node.names:
                candidate = f"{base}.{alias.name}"
                yield (candidate if candidate in known else base), node.lineno
        elif isinstance(node, ast.Call) and _is_dynamic_import(node):
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value, node.lineno


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    pieces = module.split(".")
    pieces = pieces[: len(pieces) - node.level + (1 if is_package else 0)]
    return ".".join([*pieces, node.module] if node.module else pieces)


def _is_dynamic_import(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__") and bool(node.args)


def violations(tree: dict[str, str]) -> list[str]:
    """One line for every import that points up or sideways, or that uses a library reserved for another part."""
    known = set(tree)
    found = []
    for module, source in tree.items():
        part = part_of(module)
        if part not in RANK:
            found.append(f"{module}: part {part} has no layer in tests/import_rules.py")
            continue
        for target, line in imports_of(module, source, known):
            reason = _refused(module, part, target)
            if reason:
                found.append(f"{module}:{line}: {reason}")
    return found


def _refused(module: str, part: str, target: str) -> str | None:
    library = target.split(".")[0]
    if library == "torch" and module in TORCH_FREE:
        return "imports torch, which the scheduler's side never does"
    if library in RESERVED and not part.startswith(RESERVED[library]):
        return f"imports {library}, which only {' and '.join(RESERVED[library])} may"
    if library not in ("playground", "kernels", "app"):
        return None
    target_part = part_of(target)
    if target_part == part:
        return None
    if target_part not in RANK:
        return f"imports {target}, which has no layer in tests/import_rules.py"
    if part == "kernels":
        return f"kernels imports {target}; it has to work alone"
    if RANK[target_part] >= RANK[part]:
        return f"{part} imports {target}, which is not below it"
    return None
