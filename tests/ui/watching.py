"""A tab without a browser: what a page is sent, from a handler's answer to the end of the reply that it tells of."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

import gradio as gr

from playground.ui.handlers import ChatHandlers, Outputs
from playground.ui.reply_stream import ReplyReader
from tests.ui.conftest import event

SKIP = gr.skip()


async def watch(handlers: ChatHandlers, answer: Awaitable[Outputs]) -> AsyncGenerator[Outputs, None]:
    """The answer; then, as outputs, the frames of the reply that is being written; then the answer with its end."""
    reader = handlers.replies.read()
    try:
        outputs = await answer
        yield outputs
        live = outputs[1]
        if live.get("number") is None:
            return
        async for frame in frames_of(reader, live["number"]):
            yield SKIP, frame, SKIP
        yield await handlers.again(event(chat=live["chat"]))
    finally:
        reader.close()


async def frames_of(reader: ReplyReader, number: int) -> AsyncGenerator[dict[str, Any], None]:
    """The frames of one reply, the last one included."""
    while True:
        for text in reader.take():
            frame = json.loads(text)
            if frame["number"] == number:
                yield frame
                if frame["ended"]:
                    return
        await asyncio.sleep(reader.wait or 0.01)
