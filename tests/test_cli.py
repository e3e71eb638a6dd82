"""The command line as a user meets it: real processes, real output, and errors of one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from playground.cli import parse_switches
from playground.errors import ConfigError
from playground.terminal import printable

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (["generate"], ["train"], ["info"], ["serve"], ["bench", "engine"])


def playground(*arguments: str, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "playground", *arguments], cwd=ROOT, input=stdin, capture_output=True, timeout=timeout
    )


def refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that an error is: no traceback, nothing on standard output, exit status 1."""
    text = done.stderr.decode()
    assert done.returncode == 1, text
    assert done.stdout == b""
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
    as_json = playground("generate", "--prompt", "hello", *options, "--json")
    result = json.loads(as_json.stdout)
    assert streamed.stdout.decode() == result["text"] + "\n"
    assert result["finish_reason"] == "length" and len(result["token_ids"]) == 5
    assert result["metrics"]["num_prompt_tokens"] == 5 and result["metrics"]["time_to_first_token"] > 0
    assert result["config"]["dtype"] == "float32" and "auto" not in result["config"].values()


def test_generate_reads_the_prompt_from_standard_input_and_applies_the_chat_template(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--max-tokens", "1", "--ignore-eos", "--json"]
    plain = json.loads(playground("generate", "--prompt", "-", *options, stdin=b"hello").stdout)
    assert plain["metrics"]["num_prompt_tokens"] == 5
    chat = json.loads(playground("generate", "--prompt", "-", "--chat", *options, stdin=b"hello").stdout)
    templated = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    special = templated.count("<|")
    assert chat["metrics"]["num_prompt_tokens"] == len(templated) - special * len("<|im_start|>") + special + 2
    system = json.loads(playground("generate", "-p", "hello", "--chat", "--system", "hi", *options).stdout)
    assert system["metrics"]["num_prompt_tokens"] > chat["metrics"]["num_prompt_tokens"]


def test_a_switch_of_the_engine_can_be_set(tiny_model: Path) -> None:
    options = ["--model", str(tiny_model), "--max-tokens", "1", "--json", "-p", "hello"]
    config = json.loads(playground("generate", *options, "--set", "block_size=8", "--set", "kv_cache=none").stdout)[
        "config"
    ]
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
        (["bench", "engine", "--quick", "--dtypes", "int3"], "--dtypes 'int3' is not known"),
        (["bench", "engine", "--quick", "--json", "/no/such/file.json"], "the folder /no/such does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_that_says_what_to_do(arguments: list[str], says: str) -> None:
    assert says in refusal(playground(*arguments))


def test_a_prompt_that_is_not_text_gets_one_line(tiny_model: Path) -> None:
    done = playground("generate", "--prompt", "-", "--model", str(tiny_model), stdin=b"\xff\xfe")
    assert "standard input is not UTF-8 text (byte 0)" in refusal(done)


def test_an_empty_prompt_gets_one_line(tiny_model: Path) -> None:
    assert "prompt" in refusal(playground("generate", "--prompt", "", "--model", str(tiny_model)))


def test_ctrl_c_ends_the_reply_keeps_its_text_and_says_so(tmp_path: Path) -> None:
    from tests.tiny import write_tiny_model

    model = write_tiny_model(tmp_path, max_position_embeddings=100_000)
    command = [sys.executable, "-m", "playground", "generate", "--model", str(model), "-p", "hello", "--ignore-eos"]
    command += ["--max-tokens", "90000", "--temperature", "0", "--set", "num_kv_blocks=6000"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    first = process.stdout.read(1)  # it streams before it has ended
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
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
    data = json.loads(playground("info", "--json").stdout)
    assert set(data) == {"versions", "machine", "gpus", "kernels", "models"}
    assert data["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert data["machine"]["cores_usable"] >= 1 and data["machine"]["memory_bytes"] > 0
    assert {"paged_attention", "flash_attention"} <= {choice["op"] for choice in data["kernels"]}
    assert all(choice["backend"] and choice["reason"] for choice in data["kernels"])
    assert [model["name"] for model in data["models"] if model["default"]] == ["storyteller"]
    text = playground("info").stdout.decode()
    for title in ("This machine", "Kernels", "Bundled models", "storyteller"):
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
