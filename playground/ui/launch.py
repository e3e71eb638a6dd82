"""The way from a command line to a served page: options, engine, store, page, and an orderly end.

`app.py` and `playground serve` both come through here. Whatever is the user's to mend (a bad model, a bad database, a
port in use) ends as one sentence on stderr and exit code 1.
"""

import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from playground.config import EngineConfig, SpeculationConfig
from playground.errors import ConfigError, PlaygroundError
from playground.ui.space import on_zero_gpu

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
IN_USE = "Port {port} is in use by another program: stop it, or choose another with --port."
DEFAULT_DB = Path("~/.local/share/inference-playground/chats.sqlite")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Everything the served page can be told from outside."""

    host: str | None = None
    """None: GRADIO_SERVER_NAME, else 127.0.0.1."""
    port: int | None = None
    """None: GRADIO_SERVER_PORT, else 7860."""
    model: str | None = None
    draft_model: str | None = None
    speculation: str | None = None
    """None: with a draft model "draft", else off."""
    device: str = "auto"
    dtype: str = "auto"
    share: bool = False
    db: str = str(DEFAULT_DB)
    prefix_cache_dir: str | None = None
    quantization: str | None = None
    draft_tokens: str | None = None
    """How many drafts at once, or "auto", which None is: as many as pay, and none where they do not."""

    def engine_config(self) -> EngineConfig:
        return EngineConfig(
            model=self.model,
            draft_model=self.draft_model,
            speculation=self._speculation(),
            device="cpu" if self.device == "auto" and on_zero_gpu() else self.device,
            dtype=self.dtype,  # type: ignore[arg-type]  # EngineConfig judges it
            prefix_cache_dir=self.prefix_cache_dir,
            quantization=self.quantization,
        )

    def _speculation(self) -> SpeculationConfig | None:
        if self.speculation is None:
            if self.draft_tokens is not None:
                raise ConfigError("--draft-tokens needs --speculation: say how to draft, for example draft or ngram.")
            return None
        given = self.draft_tokens or "auto"
        tokens = int(given) if given.isdecimal() else given
        return SpeculationConfig(method=self.speculation, num_tokens=tokens)  # type: ignore[arg-type]


def resolve_host(given: str | None) -> str:
    return given or os.environ.get("GRADIO_SERVER_NAME", "").strip() or DEFAULT_HOST


def resolve_port(given: int | None) -> int:
    if given is not None:
        port, source = given, "--port"
    else:
        text = os.environ.get("GRADIO_SERVER_PORT", "").strip()
        if not text:
            return DEFAULT_PORT
        source = "GRADIO_SERVER_PORT"
        if not text.isdecimal():
            raise ConfigError(f"GRADIO_SERVER_PORT={text!r} is not allowed: give a whole number from 1 to 65535.")
        port = int(text)
    if not 1 <= port <= 65535:
        raise ConfigError(f"{source}={port} is not allowed: give a whole number from 1 to 65535.")
    return port


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(IN_USE.format(port=port)) from None
            reason = error.strerror or str(error)
            raise ConfigError(f"Cannot listen on {host}:{port} ({reason}): choose another --host or --port.") from None


class _StopSignal:
    """SIGTERM and Ctrl-C: an interrupt while something is being loaded, a quiet end while the page is served."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._serving = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._serving or self._event.is_set():  # loading, or a second Ctrl-C: at once
            raise KeyboardInterrupt
        self._event.set()

    def wait_until_set(self) -> None:
        self._serving = True
        # Looked at once a second: a signal sent while the process was suspended may be taken by another thread, which
        # does not wake this one.
        while not self._event.wait(1.0):
            pass


def serve(options: ServeOptions) -> int:
    """Serve the page until SIGTERM or Ctrl-C; the exit code. Errors of the user's making become one sentence."""
    stop = _StopSignal()
    try:
        _serve(options, stop)
    except PlaygroundError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(options: ServeOptions, stop: _StopSignal) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    host, port = resolve_host(options.host), resolve_port(options.port)
    check_port(host, port)
    config = options.engine_config()
    # The heavy imports wait until the cheap refusals are over; gradio's run beside the loading of the model.
    gradio = threading.Thread(target=_import_gradio, name="import-gradio", daemon=True)
    gradio.start()
    from playground.sessions import SessionStore

    with ExitStack() as stack:
        store = stack.enter_context(SessionStore(options.db))
        from playground.ui.host import EngineHost

        host_of_engine = stack.enter_context(EngineHost())
        host_of_engine.load(config).result()
        gradio.join()
        from playground.ui.app import build_ui

        app = build_ui(host_of_engine, store)
        try:
            _, _, public_url = app.demo.launch(
                server_name=host,
                server_port=port,
                share=options.share,
                prevent_thread_lock=True,
                quiet=True,
                **app.launch_options,
            )
            print(f"Inference Playground: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)  # noqa: T201
            if public_url:
                print(f"Public address: {public_url}", flush=True)  # noqa: T201
            stop.wait_until_set()
        except OSError as error:  # taken since it was checked
            logger.debug("launching failed", exc_info=True)
            raise ConfigError(f"Cannot listen on {host}:{port} ({error}): choose another --port.") from None
        finally:
            gc.freeze()  # the process is about to end: what it still holds need not be searched for cycles
            app.close()
            app.demo.close(verbose=False)


def _import_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:  # said where it is needed
        logger.debug("importing gradio failed", exc_info=True)


Host = Annotated[str | None, typer.Option(help="Address; 0.0.0.0 is all. [default: $GRADIO_SERVER_NAME or 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: $GRADIO_SERVER_PORT or 7860]")]
Model = Annotated[str | None, typer.Option(help="Folder or hub id. [default: the bundled model]", show_default=False)]
DraftModel = Annotated[str | None, typer.Option(help="Folder or hub id of a draft model.", show_default=False)]
Speculation = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD", help="Draft tokens by draft, ngram, layer_skip, suffix or eagle.", show_default=False
    ),
]
DraftTokens = Annotated[
    str | None, typer.Option(metavar="K", help="Drafts at once with --speculation, or auto.", show_default="auto")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float64, float32, bfloat16 or float16.")]
Share = Annotated[bool, typer.Option("--share", help="Ask gradio.live for a public address.")]
PrefixCacheDir = Annotated[
    str | None, typer.Option(help="Folder that keeps computed prefixes across restarts.", show_default=False)
]
Quantization = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Quantize the weights at load: int8, int4, int2, nf4, fp8, w8a8.", show_default=False
    ),
]
Database = Annotated[str, typer.Option("--db", help="SQLite file of the saved chats, made if missing.")]


def command(
    host: Host = None,
    port: Port = None,
    model: Model = None,
    draft_model: DraftModel = None,
    speculation: Speculation = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    share: Share = False,
    db: Database = str(DEFAULT_DB),
    prefix_cache_dir: PrefixCacheDir = None,
    quantization: Quantization = None,
    draft_tokens: DraftTokens = None,
) -> None:
    """Serve the chat page.

    Example: python app.py --port 7861 --model ./my-model --device cpu
    """
    options = ServeOptions(
        host, port, model, draft_model, speculation, device, dtype, share, db, prefix_cache_dir, quantization,
        draft_tokens,
    )  # fmt: skip
    code = serve(options)
    if code == 0:
        # Everything is stored and closed; taking the interpreter apart would only keep whoever waits for the end:
        # 1 s on an idle machine, 10 s and more on a busy one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    raise typer.Exit(code)


def main() -> None:
    typer.run(command)
