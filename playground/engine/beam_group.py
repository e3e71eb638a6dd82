"""The requests that carry the beams of one search, in step with each other.

Each live beam is one ordinary request. When its last token has run it reports its candidates and is held; when all
have reported, the search selects, and the requests go on as the new beams: the first child of a beam stays in its
request, the others take over the tokens and blocks of their parent in requests that have become free. All blocks are
shared then; the first write into a part-filled one copies it. Imports no torch.

A group is admitted and preempted as a whole, so that no beam ever waits with its blocks for one that has none. After a
preemption each beam computes only what the sibling nearest to it does not have.
"""

from collections.abc import Sequence

from playground.engine.beam_search import BeamSearch, Candidate
from playground.engine.block_tables import BlockTables
from playground.engine.request import Request


class BeamGroup:
    """One beam search over as many requests as it has beams; the first computes the prompt."""

    def __init__(self, requests: Sequence[Request], search: BeamSearch) -> None:
        self.members = list(requests)
        """All requests; whoever must run before the others comes first."""
        self.search = search
        self.live = [self.members[0]]
        """The requests of `search.beams`, in their order."""
        self._reports: dict[int, Sequence[Candidate]] = {}
        for request in self.members:
            request.beams = self
            request.held = request not in self.live

    def report(self, request: Request, candidates: Sequence[Candidate]) -> bool:
        """Hold a beam that has run; whether all of them have now reported."""
        request.held = True
        self._reports[request.request_id] = candidates
        return len(self._reports) == len(self.live)

    def advance(self, tables: BlockTables | None) -> None:
        """Select, once all have reported, and let the requests go on as the new beams."""
        reports = [self._reports.pop(request.request_id) for request in self.live]
        parents = [self.live[parent] for parent in self.search.advance(reports)]
        idle = [request for request in self.members if request not in parents]
        self.live = []
        for parent in parents:
            request = parent if parent not in self.live else idle.pop(0)
            if request is not parent:
                request.token_ids = list(parent.token_ids)
                if tables is not None:
                    tables.adopt(request, parent)
            self.live.append(request)
        for request, beam in zip(self.live, self.search.beams, strict=True):
            request.token_ids.append(beam.token_ids[-1])
            request.held = False
        if tables is not None:
            for request in idle:
                tables.free(request)

    def restart(self) -> None:
        """After all blocks were lost: every beam runs again, from where it differs from its nearest sibling."""
        self._reports.clear()
        for index, request in enumerate(self.live):
            request.held = False
            request.fork_of, request.num_shared_tokens = None, 0
            for sibling in self.live[:index]:
                in_common = _num_in_common(request.token_ids, sibling.token_ids)
                if in_common > request.num_shared_tokens:
                    request.fork_of, request.num_shared_tokens = sibling, in_common
        self.members = self.live + [request for request in self.members if request not in self.live]


def _num_in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
