"""A suffix automaton that knows, for every context in its text, what followed it most often.

Online construction after Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985): a state
stands for all contexts that end at the same places, its link leads to the next shorter ones. Appending a token looks it
up in the longest context that ends the text, then in ever shorter ones, until one has seen it before: exactly the
contexts whose statistics prediction by partial matching updates (update exclusion; Moffat 1990). So the counts come at
no extra cost: appending is O(1) amortised in time and space. Tokens are numbers from 0 to 2^31 - 1.
"""

from array import array
from collections.abc import Sequence

ROOT = 0
NONE = -1


class SuffixAutomaton:
    """All substrings of the texts appended so far, at most two states a token.

    Most states have one continuation. The most frequent one (of equals the one that got there last) stands in arrays,
    the others of the few states that branch in dicts: about a sixth of the memory of a dict for each state.
    """

    def __init__(self) -> None:
        self.end = ROOT
        """State of the whole text, or of its longest suffix that occurs elsewhere, if `append` created no state."""
        self.link = array("i")
        """State of the longest context that ends in more places than this state's; `NONE` for the root."""
        self.length = array("i")
        """Tokens in the longest context of each state; the shortest has `length[link] + 1`."""
        self.next_token = array("i")
        """The most frequent continuation of each state; `NONE` where there is none yet."""
        self.next_state = array("i")
        self.next_count = array("i")
        self.total_count = array("i")
        """Uses of all continuations together, for relative frequencies."""
        self._others: dict[int, dict[int, tuple[int, int]]] = {}
        """State -> token -> (target state, count), all continuations but the most frequent."""
        self._add_state(length=0, link=NONE)

    @property
    def num_states(self) -> int:
        return len(self.link)

    @property
    def num_continuations(self) -> int:
        """Transitions, over all states."""
        return sum(token != NONE for token in self.next_token) + sum(map(len, self._others.values()))

    def start_text(self) -> None:
        """What is appended from here on does not follow what was appended before."""
        self.end = ROOT

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add one token to the end of the current text."""
        state, target = self.end, self.follow(self.end, token)
        if target != NONE:  # another text went on like this; within one text its end has no continuation
            self._count_use(state, token)
            self.end = self._target_for_suffix(state, token, target)
            return
        new = self._add_state(self.length[state] + 1, ROOT)
        while state != NONE and (target := self.follow(state, token)) == NONE:
            self._add_continuation(state, token, new, 1)
            state = self.link[state]
        if state != NONE:
            self._count_use(state, token)
            self.link[new] = self._target_for_suffix(state, token, target)
        self.end = new

    def follow(self, state: int, token: int) -> int:
        """Where `token` leads from `state`; `NONE` if it never followed there."""
        if self.next_token[state] == token:
            return self.next_state[state]
        others = self._others.get(state)
        return others[token][0] if others and token in others else NONE

    def counts(self, state: int) -> dict[int, int]:
        """How often each continuation of `state` was used while no longer context knew it."""
        counts = {token: count for token, (_, count) in self._others.get(state, {}).items()}
        if self.next_token[state] != NONE:
            counts[self.next_token[state]] = self.next_count[state]
        return counts

    # Construction

    def _add_state(self, length: int, link: int) -> int:
        self.link.append(link)
        self.length.append(length)
        self.next_token.append(NONE)
        self.next_state.append(NONE)
        self.next_count.append(0)
        self.total_count.append(0)
        return len(self.link) - 1

    def _target_for_suffix(self, state: int, token: int, target: int) -> int:
        """The state of `state`'s longest context plus `token`: `target`, or the shorter contexts split off from it."""
        length = self.length[state] + 1
        if self.length[target] == length:
            return target
        clone = self._add_state(length, self.link[target])
        self.next_token[clone] = self.next_token[target]
        self.next_state[clone] = self.next_state[target]
        self.next_count[clone] = self.next_count[target]
        self.total_count[clone] = self.total_count[target]
        if target in self._others:
            self._others[clone] = dict(self._others[target])
        self.link[target] = clone
        while state != NONE and self.follow(state, token) == target:
            self._redirect(state, token, clone)
            state = self.link[state]
        return clone

    def _redirect(self, state: int, token: int, target: int) -> None:
        if self.next_token[state] == token:
            self.next_state[state] = target
        else:
            self._others[state][token] = (target, self._others[state][token][1])

    def _count_use(self, state: int, token: int) -> None:
        """The context occurred again and was followed by a token known to it."""
        if self.next_token[state] == token:
            self.next_count[state] += 1
            self.total_count[state] += 1
        else:
            target, count = self._others[state].pop(token)
            self.total_count[state] -= count
            self._add_continuation(state, token, target, count + 1)

    def _add_continuation(self, state: int, token: int, target: int, count: int) -> None:
        self.total_count[state] += count
        if count >= self.next_count[state]:
            token, self.next_token[state] = self.next_token[state], token
            target, self.next_state[state] = self.next_state[state], target
            count, self.next_count[state] = self.next_count[state], count
        if token != NONE:
            self._others.setdefault(state, {})[token] = (target, count)
