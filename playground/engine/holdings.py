"""Counts the KV blocks that the samples of one submission hold between them.

One object is shared by all requests of a submission: a block that several of them hold is one physical block, and
would be one block each if every sample had a cache of its own. Imports no torch.
"""


class Holdings:
    """Blocks held now, and at the moment when the most physical blocks were held."""

    __slots__ = ("_holders", "num_private", "peak", "private_at_peak")

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self.num_private = 0
        """Blocks counted once for each sample that holds them."""
        self.peak = 0
        """The most distinct physical blocks held at one time."""
        self.private_at_peak = 0
        """What private caches would have taken at that moment."""

    @property
    def num_distinct(self) -> int:
        return len(self._holders)

    def add(self, block_id: int) -> None:
        """One sample more holds the block."""
        self._holders[block_id] = self._holders.get(block_id, 0) + 1
        self.num_private += 1

    def remove(self, block_id: int) -> None:
        """One sample fewer holds the block."""
        left = self._holders[block_id] - 1
        if left:
            self._holders[block_id] = left
        else:
            del self._holders[block_id]
        self.num_private -= 1

    def note_peak(self) -> None:
        now = (len(self._holders), self.num_private)
        if now > (self.peak, self.private_at_peak):
            self.peak, self.private_at_peak = now
