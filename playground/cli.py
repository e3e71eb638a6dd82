"""The `playground` command: a thin layer that turns options into calls of the library.

Heavy libraries are imported inside the commands, so that `--help` answers at once. What is the user's to mend is one
line on stderr and exit status 1; a Python traceback means a bug.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from playground.bench.command import bench_app
from playground.compression.command import compress as compress_command
from playground.errors import ConfigError, PlaygroundError
from playground.terminal import printable, run
from playground.ui.launch import command as serve_command

if TYPE_CHECKING:
    from playground.engine.engine import Engine
    from playground.engine.handle import GenerationHandle
    from playground.engine.outputs import Generation

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = typer.Typer(
    name="playground",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A real LLM inference engine, every part of which can be watched, switched off and measured.",
)
app.add_typer(bench_app, name="bench")

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder or hub id. Default: the bundled model.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Entry point of the console script."""
    run(app)


@app.command(epilog='Example: playground generate --chat --prompt "Tell me a story about a fox." --max-tokens 200')
def generate(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help='The prompt; "-" reads it from standard input.')],
    model: ModelOption = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System prompt, with --chat.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest reply, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable tokens; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the smallest set of this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the best one.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repeats; 1 is off.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this text; may be given several times.")] = None,
    ignore_eos: Annotated[bool | None, typer.Option("--ignore-eos", help="Go on to --max-tokens.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="Quantize the weights at load: int8, int4, int2, nf4, fp8, w8a8.")
    ] = None,
    draft_model: Annotated[str | None, typer.Option(help="Folder or hub id of a draft model.")] = None,
    speculation: Annotated[
        str | None, typer.Option(metavar="METHOD", help="How to draft: draft, ngram, layer_skip, suffix or eagle.")
    ] = None,
    draft_tokens: Annotated[
        str | None, typer.Option(metavar="K", help='Drafts verified at once, or "auto", with --speculation.')
    ] = None,
    prefix_cache_dir: Annotated[
        str | None, typer.Option(help="Folder that keeps computed prefixes from one run to the next.")
    ] = None,
    switches: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other engine switch, e.g. --set kv_cache=none or --set speculation.verification=coupled.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Generate text and stream it to the terminal; with --json, print text and metrics as one object."""
    params = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop) if stop else None,
        ignore_eos=ignore_eos,
    )
    if system is not None and not chat:
        raise ConfigError("--system needs --chat: only a chat template has a place for a system prompt.")
    if prompt == "-":
        prompt = read_stdin()
    if draft_tokens is not None and speculation is None:
        raise ConfigError("--draft-tokens needs --speculation: say how to draft, for example --speculation ngram.")
    if speculation is not None:
        switches = [f"speculation.method={speculation}", *(switches or [])]
    if draft_tokens is not None:
        switches = [f"speculation.num_tokens={draft_tokens}", *(switches or [])]
    options = given(
        model=model,
        draft_model=draft_model,
        device=device,
        dtype=dtype,
        quantization=quantization,
        prefix_cache_dir=prefix_cache_dir,
    )
    config = {**parse_switches(switches or []), **options}

    from playground import Engine, EngineConfig, SamplingParams

    sampling = SamplingParams(**params)
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
    with Engine(EngineConfig(**config)) as engine:
        handle = engine.submit(engine.chat_prompt(messages) if chat else prompt, sampling)
        generation, interrupted = follow(handle, echo=not as_json)
        report(engine, generation, as_json)
    if generation.error:
        raise PlaygroundError(generation.error)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def given(**options: Any) -> dict[str, Any]:
    """Only the options that were given: every default stands in one place, the library."""
    return {name: value for name, value in options.items() if value is not None}


def read_stdin() -> str:
    """Standard input as text; `ConfigError` where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text (byte {error.start}): convert it first.") from None


def parse_switches(switches: list[str]) -> dict[str, Any]:
    """`["block_size=32", "kv_cache=none"]` -> `{"block_size": 32, "kv_cache": "none"}`: values are JSON or text.

    `a.b=1` sets field b of a.
    """
    values: dict[str, Any] = {}
    for switch in switches:
        name, equals, text = switch.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {switch!r} is not NAME=VALUE: write for example --set block_size=32.")
        try:
            value = json.loads(text)
        except ValueError:
            value = {"None": None, "True": True, "False": False}.get(text, text)
        owner, dot, field = name.partition(".")
        if not dot:
            values[name] = value
        elif isinstance(values.setdefault(owner, {}), dict):
            values[owner][field] = value
        else:
            raise ConfigError(f"--set {owner} and --set {name} cannot both be given: leave one out.")
    return values


def follow(handle: "GenerationHandle", echo: bool) -> tuple["Generation", bool]:
    """Stream the deltas to standard output; Ctrl-C ends the request and keeps what there is."""
    interrupted, terminal = False, sys.stdout.isatty()
    try:
        for delta in handle:
            if echo:
                sys.stdout.write(printable(delta.text) if terminal else delta.text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        handle.cancel()
    except BrokenPipeError:
        handle.cancel()
        raise
    generation = handle.result(timeout=60)
    if echo:
        sys.stdout.write("\n")
    return generation, interrupted


def report(engine: "Engine", generation: "Generation", as_json: bool) -> None:
    """The metrics: JSON on standard output, or one line on standard error."""
    metrics = generation.metrics
    if as_json:
        result = {
            "text": generation.text,
            "token_ids": generation.token_ids,
            "finish_reason": generation.finish_reason,
            "error": generation.error,
            "metrics": asdict(metrics),
            "config": engine.config.model_dump(mode="json"),
        }
        print(json.dumps(result, ensure_ascii=False))
        return
    parts = [f"{metrics.num_output_tokens} tokens", f"{metrics.num_prompt_tokens} in the prompt"]
    if metrics.time_to_first_token is not None:
        parts.append(f"first after {metrics.time_to_first_token * 1000:.0f} ms")
    if metrics.time_per_output_token:
        parts.append(f"then {1 / metrics.time_per_output_token:.1f} tokens/s")
    if metrics.num_draft_tokens:
        parts.append(f"{metrics.num_accepted_tokens} of {metrics.num_draft_tokens} drafts accepted")
    if metrics.speculation is not None and metrics.speculation.reason is not None:
        parts.append(f"speculation {metrics.speculation.state}: {metrics.speculation.reason}")
    parts.append(f"ended by {generation.finish_reason}")
    print(f"[{', '.join(parts)}]", file=sys.stderr)


app.command(
    "compress",
    epilog="Example: playground compress --method gptq --bits 4 --calibration text.txt --output my-model-int4",
)(compress_command)
app.command("serve", epilog="Example: playground serve --port 7861 --model ./my-model")(serve_command)


@app.command(epilog="Example: playground train playground/training/configs/target.toml --resume")
def train(
    config: Annotated[Path, typer.Argument(help="Training config, .toml or .json.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Go on from this model, such as one with fewer KV heads: its weights, shape and tokenizer.",
        ),
    ] = None,
) -> None:
    """Train a model: checkpoints, loss curve, held-out bits per byte and samples go to the config's output folder."""
    import logging

    from playground.training.trainer import train as run_training

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    print(run_training(config, resume=resume, start=start))


@app.command("record-tours", epilog="Example: playground record-tours prefix-hit")
def record_tours_command(
    names: Annotated[list[str] | None, typer.Argument(help="Which tours; all of them if none is named.")] = None,
) -> None:
    """Record the guided tours of the Requests page anew, with the bundled models on this machine."""
    from playground.ui.record_tours import record_tours

    for path in record_tours(names=names or ()):
        print(f"{path}: {path.stat().st_size / 1024:.1f} KiB")


@app.command(epilog="Example: playground info --json")
def info(as_json: JsonFlag = False) -> None:
    """Show versions, devices, CPU features, the kernels chosen here and why, and the bundled models."""
    from playground.info import collect, render, to_json

    data = collect()
    if as_json:
        print(to_json(data))
    else:
        render(data)
