"""The text, token ids and logprobs of one growing output, cut together where a stop ends it.

Owns what may be shown and when: half characters and possible beginnings of stop strings are held back, and whatever has
been shown stays. Knows nothing of batches or blocks, and never decides about length limits.

Rules. A stop string and all after it are not part of the text; the stop that completes first wins. The tokens kept are
those whose text begins before the stop string does, so the last of them may reach into it. An EOS or stop token is kept
as a token and adds no text. None of these can end the output before `min_tokens`: a stop string counts only if it lies
wholly behind the text of the first `min_tokens` tokens, which therefore are all kept.
"""

from collections.abc import Sequence
from typing import Any

from playground.engine.outputs import TokenLogprob
from playground.engine.stop_strings import StopMatcher
from playground.engine.token_text import text_stream
from playground.sampling_params import SamplingParams


class Detokenizer:
    """Follows one sample of one request; `append` its tokens as they come, `finish` it once, whatever ended it."""

    def __init__(
        self,
        tokenizer: Any,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.stopped = False
        """Whether a stop string, stop token or EOS ended the output; tokens appended later are ignored."""
        self.matched_stop: str | int | None = None
        """The stop string or token id that did."""
        self._ending = params.ending_token_ids(eos_token_ids)
        self._min_tokens = params.min_tokens
        self._stream = text_stream(tokenizer, prompt_token_ids)
        self._matcher = StopMatcher(params.stop)
        self._has_stops = bool(params.stop)
        self._shown: list[str] = []
        self._held = ""
        self._num_shown_chars = 0
        self._starts: list[int] = []
        """For each token, how many characters were complete before it."""
        self._finished = False

    @property
    def text(self) -> str:
        """All text released so far; the whole text once finished."""
        return "".join(self._shown)

    @property
    def num_released_tokens(self) -> int:
        """How many tokens no stop string can take away any more: those that began before all it could begin with."""
        if self.stopped or self._finished or not self._has_stops:
            return len(self.token_ids)
        return self._num_tokens_before(self._num_shown_chars)

    def append(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> str:
        """Take new tokens, with their logprobs if there are any; returns the text that can be shown now."""
        before = self._num_shown_chars
        for i, token_id in enumerate(token_ids):
            if self.stopped or self._finished:
                break
            self.token_ids.append(token_id)
            self.logprobs += logprobs[i : i + 1]
            self._starts.append(self._num_shown_chars + len(self._held))
            if token_id in self._ending and len(self.token_ids) > self._min_tokens:
                self.stopped, self.matched_stop = True, token_id
            else:
                self._take(self._stream.feed(token_id))
        return self._shown_since(before)

    def finish(self) -> str:
        """Release what was held back, unless a stop string had ended the text; returns "" when called again."""
        before = self._num_shown_chars
        if not self._finished:
            if not isinstance(self.matched_stop, str):
                self._take(self._stream.finish())
                self._show(len(self._held))
            self._finished = True
        return self._shown_since(before)

    def _take(self, text: str) -> None:
        self._held += text
        if len(self.token_ids) > self._min_tokens:  # so a stop begins behind the first min_tokens tokens
            found = self._matcher.feed(text)
            if found is not None:
                end, stop = found
                self._cut(len(self._held) - len(text) + end - len(stop), stop)
                return
        self._show(len(self._held) - self._matcher.held)

    def _cut(self, size: int, stop: str) -> None:
        """End the text after `size` of the held characters, and the tokens with it."""
        self._held = self._held[:size]
        self._show(size)
        count = self._num_tokens_before(self._num_shown_chars)
        for column in (self.token_ids, self.logprobs, self._starts):
            del column[count:]
        self.stopped, self.matched_stop = True, stop

    def _num_tokens_before(self, num_chars: int) -> int:
        """How many tokens begin before this place in the text, and the first `min_tokens` in any case."""
        count = len(self.token_ids)
        while count > self._min_tokens and self._starts[count - 1] >= num_chars:
            count -= 1
        return count

    def _show(self, size: int) -> None:
        if size:
            self._shown.append(self._held[:size])
            self._held = self._held[size:]
            self._num_shown_chars += size

    def _shown_since(self, num_chars: int) -> str:
        missing = self._num_shown_chars - num_chars
        pieces: list[str] = []
        for piece in reversed(self._shown):
            if missing <= 0:
                break
            pieces.append(piece)
            missing -= len(piece)
        return "".join(reversed(pieces))
