"""The errors a user can meet: one line each, saying what was given, what is allowed and what to do.

Everything that is the caller's to mend derives from `PlaygroundError`; anything else that escapes the library is a bug.
"""


class PlaygroundError(ValueError):
    """Base of all errors meant for a user; its text is one line without a stack trace."""


class ConfigError(PlaygroundError):
    """A configuration that cannot be used: an unknown field, a value out of range, parts that contradict."""


class ModelLoadError(PlaygroundError):
    """A checkpoint that cannot be read: missing, truncated, of an unsupported architecture, of other shapes."""


class RequestError(PlaygroundError):
    """A request that cannot be served: bad parameters, a prompt too long, more KV than the pool has."""


def out_of_memory(error: Exception) -> str | None:
    """The sentence for a load or a run that found no memory; None for other errors."""
    text = str(error).lower()
    if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
        return None
    return "There is not enough memory for this model: choose a smaller one, quantize it, or lower max_model_len."
