"""Suffix decoding: drafts from whatever text ended like this one before, be it the request's own or an earlier answer.

After Oliaro et al., "SuffixDecoding" (arXiv 2411.04975), with suffix automata in place of trees: the longest end of the
text that is known somewhere is followed to its most frequent continuation, token by token. Owns one automaton per
request and a bounded store of finished outputs; requests with different `cache_salt` never see one another's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from playground.engine.request import Request
from playground.engine.speculation.lookup import MIN_CHANCE, chance_to_hold, shortest_match
from playground.engine.speculation.suffix_automaton import NONE, ROOT, SuffixAutomaton
from playground.errors import ConfigError

NUM_LEAD_IN_TOKENS = 16
"""End of the prompt that is stored with an output, so that the start of an answer can be recognised as well."""


class OutputStore:
    """Finished outputs, the oldest leaving: two generations of automata, each for half of the tokens.

    Outputs enter the young generation; once it is full it becomes the old one, whose predecessor is dropped whole. So
    nothing is ever removed from an automaton or indexed twice, and memory (some 130 bytes a token) stays bounded.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_generation_tokens = max_tokens // 2
        self._num_young_tokens = 0
        self._young: dict[str | None, SuffixAutomaton] = {}
        self._old: dict[str | None, SuffixAutomaton] = {}

    def add(self, salt: str | None, text: Sequence[int]) -> None:
        """Keep a text, or as much of its end as fits into one generation."""
        text = text[max(0, len(text) - self._max_generation_tokens) :]
        if not text:
            return
        if self._num_young_tokens + len(text) > self._max_generation_tokens:
            self._old, self._young, self._num_young_tokens = self._young, {}, 0
        self._num_young_tokens += len(text)
        automaton = self._young.setdefault(salt, SuffixAutomaton())
        automaton.start_text()
        automaton.extend(text)

    def automata(self, salt: str | None) -> list[SuffixAutomaton]:
        """What a request with this salt may look at, newest first."""
        return [generation[salt] for generation in (self._young, self._old) if salt in generation]


@dataclass(slots=True)
class _Match:
    """The longest end of a request's text that an automaton knows, among the tokens seen since both exist."""

    automaton: SuffixAutomaton
    state: int = ROOT
    length: int = 0

    def advance(self, tokens: Sequence[int]) -> None:
        automaton = self.automaton
        link, length = automaton.link, automaton.length
        while self.length and self.length <= length[link[self.state]]:  # split off since, when outputs were added
            self.state = link[self.state]
        for token in tokens:
            while (target := automaton.follow(self.state, token)) == NONE and self.state != ROOT:
                self.state = link[self.state]
                self.length = length[self.state]
            if target != NONE:
                self.state = target
                self.length += 1


@dataclass(slots=True)
class _RequestText:
    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    num_tokens: int = 0
    """Text length when it was last brought up to date."""
    matches: list[_Match] = field(default_factory=list)
    """In the stored outputs, newest generation first."""


class SuffixProposer:
    """A `LookupProposer` over the request's own text and earlier outputs; O(1) amortised work a token."""

    def __init__(self, max_stored_tokens: int = 65_536) -> None:
        """`max_stored_tokens` bounds the finished outputs kept; 0 looks at each request's own text only."""
        if max_stored_tokens < 0:
            raise ConfigError(f"max_stored_tokens={max_stored_tokens} is not allowed: give a whole number, 0 or more.")
        self._store = OutputStore(max_stored_tokens)
        self._requests: dict[int, _RequestText] = {}

    def propose(self, request: Request, num_tokens: int) -> list[int]:
        """The likeliest continuation of the longest known end of the text; of equal ones the request's own counts.

        The draft ends after the token at which it has become unlikely: by the frequency of its tokens after what comes
        before them, and by its length compared with that of the match.
        """
        known = self._requests.setdefault(request.request_id, _RequestText())
        self._catch_up(known, request)
        repeated = max(ROOT, known.own.link[known.own.end])  # the longest end of the text that occurs in it before
        own = _Match(known.own, repeated, known.own.length[repeated])
        best = max((own, *known.matches), key=lambda match: match.length)
        return _continuation(best, num_tokens, shortest_match(request))

    def forget(self, request: Request) -> None:
        """Drop the request's own index and store its output for others, unless it takes no part in speculation."""
        self._requests.pop(request.request_id, None)
        if request.num_output_tokens and request.params.speculate:
            first = max(0, request.num_prompt_tokens - NUM_LEAD_IN_TOKENS)
            self._store.add(request.params.cache_salt, request.token_ids[first:])

    def _catch_up(self, known: _RequestText, request: Request) -> None:
        tokens = request.token_ids[known.num_tokens :]
        known.num_tokens = request.num_tokens
        known.own.extend(tokens)
        stored = self._store.automata(request.params.cache_salt)
        before = {id(match.automaton): match for match in known.matches}
        known.matches = [before.get(id(automaton)) or _Match(automaton) for automaton in stored]
        for match in known.matches:
            match.advance(tokens)


def _continuation(match: _Match, num_tokens: int, min_match: int) -> list[int]:
    """The most frequent continuation, token by token; where a text ends, what follows its longest known end."""
    automaton, state = match.automaton, match.state
    drafts: list[int] = []
    frequency = 1.0
    if match.length < min_match:
        return drafts
    while len(drafts) < num_tokens and frequency * chance_to_hold(match.length, len(drafts)) >= MIN_CHANCE:
        while automaton.next_token[state] == NONE and automaton.length[state] >= min_match:
            state = automaton.link[state]
        if automaton.length[state] < min_match:
            break
        frequency *= automaton.next_count[state] / automaton.total_count[state]
        drafts.append(automaton.next_token[state])
        state = automaton.next_state[state]
    return drafts
