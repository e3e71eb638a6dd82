"""What others published, and what the formula says, beside what this run measured. Data and pure arithmetic."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from playground.engine.speculation.formula import LEVIATHAN_TABLE_2, expected_tokens, speedup

FORMULA_NUM_TOKENS = (4, 8)
FORMULA_ACCEPTANCE = (0.7, 0.8, 0.9)
DRAFT_COSTS = (0.0, 0.05, 0.1, 0.2)
"""c of the formula's table, with v = 1: a target that is bound by memory."""

SOURCES = {
    "formula": "Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding, arXiv "
    "2211.17192, theorem 3.8; with the cost of verification v in place of 1",
    "leviathan": "arXiv 2211.17192, tables 2 and 4: T5-XXL 11B on a TPU-v4, batch 1",
    "chen": "Chen et al.: Accelerating Large Language Model Decoding with Speculative Sampling, arXiv 2302.01318, "
    "table 1: Chinchilla 70B with a 4B draft, K = 4, batch 1, 16 TPU-v4",
}


class ChenRow(NamedTuple):
    task: str
    plain_ms: float
    """Milliseconds a token."""
    speculative_ms: float
    speedup: float


CHEN_TABLE_1 = (
    ChenRow("XSum, nucleus", 14.1, 7.52, 1.92),
    ChenRow("XSum, greedy", 14.1, 7.00, 2.01),
    ChenRow("HumanEval, nucleus", 14.1, 5.73, 2.46),
)


def published(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The formula's table for K = 4 and 8 at 70, 80 and 90 %, our rows at these K, and the papers' measurements."""
    return {
        "sources": SOURCES,
        "formula": [_formula(k, acceptance) for k in FORMULA_NUM_TOKENS for acceptance in FORMULA_ACCEPTANCE],
        "ours": [_ours(row) for row in rows if _comparable(row)],
        "leviathan": [row._asdict() for row in LEVIATHAN_TABLE_2],
        "chen": [row._asdict() for row in CHEN_TABLE_1],
    }


def _formula(num_tokens: int, acceptance: float) -> dict[str, Any]:
    tokens = expected_tokens(acceptance, num_tokens)
    return {
        "num_tokens": num_tokens,
        "acceptance": acceptance,
        "tokens_per_step": tokens,
        "speedups": [{"draft_cost": c, "speedup": speedup(tokens, num_tokens, c)} for c in DRAFT_COSTS],
    }


def _comparable(row: dict[str, Any]) -> bool:
    """A model's drafts at batch size 1, verified as the papers do."""
    return (
        row["error"] is None
        and row["proposer"] == "draft"
        and row["batch_size"] == 1
        and row["verification"] == "rejection"
        and row["num_tokens"] in FORMULA_NUM_TOKENS
    )


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "workload", "num_tokens", "acceptance", "tokens_per_step", "tokens_per_step_one_alpha", "draft_cost",
        "verify_cost", "expected_speedup", "speedup",
    )  # fmt: skip
    return {name: row[name] for name in names}
