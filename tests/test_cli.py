"""The command line as a user meets it: real processes, real output, and errors of one line."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from playground.cli import main, parse_switches
from playground.errors import ConfigError
from playground.terminal import printable

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ["generate"],
    ["train"],
    ["compress"],
    ["info"],
    ["serve"],
    ["bench", "engine"],
    ["bench", "speculation"],
    ["bench", "prompt-cache"],
)


def playground(*arguments: str, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "playground", *arguments], cwd=ROOT, input=stdin, capture_output=True, timeout=timeout
    )


def run_main(*arguments: str) -> str:
    """Standard output of the command, run in this process: a new one would import torch again."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", ["playground", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return out.getvalue()


def refusal(*arguments: str) -> str:
    """The one line that a mistake gets, with nothing on standard output and exit status 1."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["playground", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code, out.getvalue()) == (1, "")
    return one_line(err.getvalue())


def one_line(text: str) -> str:
    """The one line that an error is, without a traceback."""
    assert text.count("\n") == 1 and text.startswith("playground: "), text
    return text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_shows_an_example_in_its_help(command: list[str]) -> None:
    done = playground(*command, "--help")
    assert done.returncode == 0, done.stderr.decode()
    assert f"Example: playground {' '.join(command)}" in " ".join(done.stdout.decode().split())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['playground', '--help']\n"
        "from playground.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'gradio', 'sqlmodel', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_generate_streams_the_text_and_reports_on_standard_error(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--device", "cpu", "--temperature", "0", "--max-tokens", "5", "--ignore-eos"]
    streamed = playground("generate", "--prompt", "hello", *options)
    assert streamed.returncode == 0, streamed.stderr.decode()
    assert b"[5 tokens, 5 in the prompt, first after " in streamed.stderr
    result = json.loads(run_main("generate", "--prompt", "hello", *options, "--json"))
    assert streamed.stdout.decode() == result["text"] + "\n"
    assert result["finish_reason"] == "length" and len(result["token_ids"]) == 5
    assert result["metrics"]["num_prompt_tokens"] == 5 and result["metrics"]["time_to_first_token"] > 0
    assert result["config"]["dtype"] == "float32" and result["config"]["device"] == "cpu"


def test_generate_reads_the_prompt_from_standard_input(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("h\u00e9".encode())))
    result = run_main("generate", "--prompt", "-", "--model", str(tiny_model), "--max-tokens", "1", "--json")
    assert json.loads(result)["metrics"]["num_prompt_tokens"] == len("h\u00e9".encode())


def test_chat_puts_the_prompt_and_the_system_prompt_through_the_template(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--max-tokens", "1", "--json", "--chat", "--prompt", "hello"]
    user, reply = "<|im_start|>user\nhello<|im_end|>\n", "<|im_start|>assistant\n"
    system = "<|im_start|>system\nhi<|im_end|>\n"

    def tokens(text: str) -> int:  # every byte is a token, and so is every special token
        return len(re.sub(r"<\|\w+\|>", "#", text))

    def prompt_tokens(*arguments: str) -> int:
        return json.loads(run_main("generate", *arguments))["metrics"]["num_prompt_tokens"]

    assert prompt_tokens(*options) == tokens(user + reply)
    assert prompt_tokens(*options, "--system", "hi") == tokens(system + user + reply)


def test_a_switch_of_the_engine_can_be_set(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--max-tokens", "1", "--json", "-p", "hello"]
    config = json.loads(run_main("generate", *options, "--set", "block_size=8", "--set", "kv_cache=none"))["config"]
    assert (config["block_size"], config["kv_cache"]) == (8, "none")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "-p", "x", "--temperature", "-1"], "temperature=-1.0 is not allowed: give a number from 0"),
        (["generate", "-p", "x", "--set", "nonsense"], "--set 'nonsense' is not NAME=VALUE"),
        (["generate", "-p", "x", "--set", "nonsense=1"], "EngineConfig has no field 'nonsense'"),
        (["generate", "-p", "x", "--system", "y"], "--system needs --chat"),
        (["generate", "-p", "x", "--model", "/no/such/folder"], "/no/such/folder"),
        (["generate", "-p", "x", "--device", "tpu"], "device='tpu' is not allowed"),
        (["train", "/no/such/config.toml"], "no training config at /no/such/config.toml"),
        (["bench", "engine", "--peer", "nobody"], "--peer 'nobody' is not known: give transformers or none"),
        (["bench", "engine", "--quick", "--models", "/no/such"], "model '/no/such' is neither"),
        (["bench", "engine", "--quick", "--dtypes", "int3"], "--dtypes 'int3' is not known: give some of bfloat16"),
        (["bench", "engine", "--quick", "--json", "/no/such/file.json"], "the folder /no/such does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_that_says_what_to_do(arguments: list[str], says: str) -> None:
    assert says in refusal(*arguments)


def test_a_prompt_that_is_not_text_gets_one_line() -> None:
    done = playground("generate", "--prompt", "-", stdin=b"\xff\xfe")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "standard input is not UTF-8 text (byte 0)" in one_line(done.stderr.decode())


def test_an_empty_prompt_gets_one_line(tiny_model: Path) -> None:
    assert "prompt" in refusal("generate", "--prompt", "", "--model", str(tiny_model))


def test_ctrl_c_ends_the_reply_keeps_its_text_and_says_so(tmp_path: Path) -> None:
    from tests.tiny import write_tiny_model

    model = write_tiny_model(tmp_path, max_position_embeddings=100_000)
    command = [sys.executable, "-m", "playground", "generate", "--model", str(model), "-p", "hello", "--ignore-eos"]
    command += ["--max-tokens", "90000", "--temperature", "0", "--set", "num_kv_blocks=6000"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts its background jobs with Ctrl-C ignored, and this test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    try:
        first = process.stdout.read(1)  # it streams before it has ended
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert first and rest.endswith(b"\n")
    assert process.returncode == 130
    assert b"ended by abort" in errors and b"Traceback" not in errors


def test_a_reader_that_goes_away_ends_the_command_quietly(tiny_model: Path) -> None:
    command = (
        f"{sys.executable} -m playground generate --model {tiny_model} -p hello --ignore-eos --max-tokens 200 | true"
    )
    started = time.monotonic()
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    assert time.monotonic() - started < 110


def test_info_tells_versions_devices_kernels_and_models() -> None:
    data = json.loads(run_main("info", "--json"))
    assert set(data) == {"versions", "machine", "gpus", "kernels", "crossovers", "models"}
    assert data["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert data["machine"]["cores_usable"] >= 1 and data["machine"]["memory_bytes"] > 0
    assert {"paged_attention", "flash_attention"} <= {choice["op"] for choice in data["kernels"]}
    assert all(choice["backend"] and choice["reason"] for choice in data["kernels"])
    assert [model["name"] for model in data["models"] if model["default"]] == ["storyteller"]
    assert {one["layout"] for one in data["crossovers"]} == {"int8 rows", "int4 groups"}
    for one in data["crossovers"]:
        assert list(one["packed_us"]) == list(one["written_us"]) and min(one["packed_us"].values()) > 0


def test_info_shows_the_same_as_tables() -> None:
    text = run_main("info")
    for title in ("This machine", "Kernels", "int4 groups", "Bundled models", "paged_attention", "storyteller"):
        assert title in text


def test_switch_values_are_json_or_plain_text() -> None:
    switches = [
        "block_size=32",
        "kv_cache=none",
        "prefix_caching=false",
        "chunked_prefill=True",
        "prefix_cache_ttl=None",
    ]
    assert parse_switches(switches) == {
        "block_size": 32,
        "kv_cache": "none",
        "prefix_caching": False,
        "chunked_prefill": True,
        "prefix_cache_ttl": None,
    }
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_switches(["=3"])


def test_model_text_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\tc\n\x9b31m\u00e9\U0001f600") == "a[2Jb\tc\n31m\u00e9\U0001f600"
