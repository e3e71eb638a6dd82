"""Where the models that come with the project lie. Loads nothing."""

from pathlib import Path

_ASSETS = Path(__file__).resolve().parents[2] / "assets" / "models"

BUNDLED_MODEL = _ASSETS / "storyteller"
"""The target that every command uses when no model is named."""
BUNDLED_DRAFT_MODEL = _ASSETS / "storyteller-draft"
"""The small model with the same tokenizer."""
