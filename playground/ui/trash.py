"""`Trash`: chats that were deleted a moment ago and can still be brought back. Knows nothing of the store or gradio."""

import logging
import threading
from collections.abc import Callable

UNDO_SECONDS = 8.0
"""How long the page offers to bring a chat back."""
GRACE_SECONDS = 2.0
"""How much later it is deleted: an answer that was given in time may arrive late."""

logger = logging.getLogger(__name__)


class Trash:
    """Holds ids; calls `delete` with each once its time is over, or when closed. Thread-safe."""

    def __init__(self, delete: Callable[[int], None], seconds: float = UNDO_SECONDS + GRACE_SECONDS) -> None:
        self._delete = delete
        self._seconds = seconds
        self._timers: dict[int, threading.Timer] = {}
        self._going: set[int] = set()
        """Being deleted: not to be seen any more, nor to be brought back."""
        self._lock = threading.Lock()

    def __contains__(self, chat_id: object) -> bool:
        with self._lock:
            return chat_id in self._timers or chat_id in self._going

    def put(self, chat_id: int) -> None:
        timer = threading.Timer(self._seconds, self._empty, [chat_id])
        timer.daemon = True
        with self._lock:
            if chat_id in self._timers:
                return
            self._timers[chat_id] = timer
        timer.start()

    def restore(self, chat_id: int) -> bool:
        """Whether it was still there."""
        with self._lock:
            timer = self._timers.pop(chat_id, None)
        if timer is not None:
            timer.cancel()
        return timer is not None

    def close(self) -> None:
        """Delete what is there now: its user has not taken it back."""
        with self._lock:
            chat_ids = list(self._timers)
        for chat_id in chat_ids:
            self._empty(chat_id)

    def _empty(self, chat_id: int) -> None:
        with self._lock:
            timer = self._timers.pop(chat_id, None)
            if timer is None:
                return
            self._going.add(chat_id)
        timer.cancel()
        try:
            self._delete(chat_id)
        except Exception:
            logger.exception("chat %d was not deleted", chat_id)
        finally:
            with self._lock:
                self._going.discard(chat_id)
