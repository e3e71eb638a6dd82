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
