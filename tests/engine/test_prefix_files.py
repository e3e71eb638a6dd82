"""The prefix cache on disk: what comes back is what was written, and nothing in the folder is trusted."""

import json
import logging
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from playground import ConfigError, Engine, EngineConfig, SamplingParams
from playground.engine.block_pool import BlockKey
from playground.engine.block_tables import chain_hash
from playground.engine.host_memory import HostMemory
from playground.engine.prefix_files import NewBlock, PrefixFiles
from playground.models.config import DecoderConfig
from playground.models.fingerprint import model_fingerprint
from playground.models.kv_cache import KVCache
from tests.tiny import write_tiny_model

IDENTITY = {"model": "a model", "dtype": "float32", "block size": 4}
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
SYSTEM = "You are a fox. Be brief and kind. "
PROMPTS = [SYSTEM + "Who are you?", SYSTEM + "Tell me a story"]


@pytest.fixture
def memory(tiny_model: Path) -> HostMemory:
    kv_cache = KVCache(DecoderConfig.from_folder(tiny_model), 4, 4, torch.float32)
    return HostMemory(kv_cache, 4)


@pytest.fixture
def open_files(tmp_path: Path, memory: HostMemory):
    def make(identity=IDENTITY, limit_bytes=1 << 20, **fields) -> PrefixFiles:
        return PrefixFiles(tmp_path / "cache", identity, memory, limit_bytes=limit_bytes, **fields)

    return make


def chain(length: int, first: int = 0, salted: bool = False) -> list[BlockKey]:
    keys, parent = [], 7
    for index in range(length):
        token_ids = (first, index, 2, 3)
        keys.append(BlockKey(chain_hash(parent, token_ids), parent, token_ids, salted))
        parent = keys[-1].hash
    return keys


def content(memory: HostMemory, key: BlockKey) -> torch.Tensor:
    generator = torch.Generator().manual_seed(key.hash % 2**31)
    return torch.randn(memory.shape, generator=generator)


def blocks(memory: HostMemory, keys: list[BlockKey], used_at: float = 100.0) -> list[NewBlock]:
    return [NewBlock(key, used_at, lambda key=key: content(memory, key)) for key in keys]


def found(files: PrefixFiles, memory: HostMemory, keys: list[BlockKey]) -> list[bool]:
    """Which blocks come back; what comes back is checked to be what was written."""
    result = []
    for key in keys:
        back = key in files and files.load(key, 1)
        assert not back or torch.equal(memory.slot(1), content(memory, key))
        result.append(back)
    return result


def the_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    return file


def header_of(file: Path) -> tuple[dict, bytes]:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put_header(file: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_what_was_written_comes_back(open_files, memory, tmp_path):
    keys = chain(5)
    assert open_files().write(blocks(memory, keys)) == 5
    again = open_files()
    assert len(again) == 5 and found(again, memory, keys) == [True] * 5
    assert found(again, memory, chain(2, first=9)) == [False] * 2
    assert again.write(blocks(memory, keys)) == 0, "what is there is not written again"
    file = the_file(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert torch.equal(load_file(file)[f"{keys[2].hash:016x}"], content(memory, keys[2])), "a plain safetensors file"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn])
def test_every_type_of_kv_comes_back(tiny_model, tmp_path, dtype):
    memory = HostMemory(KVCache(DecoderConfig.from_folder(tiny_model), 4, 4, dtype), 2)
    (key,) = chain(1)
    written = content(memory, key).abs().mul(20).to(memory.dtype)
    PrefixFiles(tmp_path, IDENTITY, memory, limit_bytes=1 << 20).write([NewBlock(key, 0, lambda: written)])
    assert PrefixFiles(tmp_path, IDENTITY, memory, limit_bytes=1 << 20).load(key, 0)
    assert torch.equal(memory.slot(0), written)


def test_salted_blocks_are_never_written(open_files, memory, tmp_path):
    assert open_files().write(blocks(memory, chain(3, salted=True))) == 0
    assert list((tmp_path / "cache").iterdir()) == []


def test_tokens_are_compared_not_only_hashes(open_files, memory):
    (key,) = chain(1)
    files = open_files()
    files.write(blocks(memory, [key]))
    assert key._replace(token_ids=(9, 9, 9, 9)) not in files and key._replace(parent_hash=8) not in files


def test_files_make_room_for_the_ones_used_later(open_files, memory, tmp_path):
    old, late, new = (chain(3, first=number) for number in range(3))
    for number, keys in enumerate((old, late)):
        before = set((tmp_path / "cache").glob("*"))
        open_files().write(blocks(memory, keys))
        (file,) = set((tmp_path / "cache").glob("*")) - before
        os.utime(file, (number, number))
    limit = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) + 100
    files = open_files(limit_bytes=limit)
    assert found(files, memory, old[:1]) == [True], "reading makes a file young again"
    files.write(blocks(memory, new))
    assert found(files, memory, old) == [True] * 3 and found(files, memory, late) == [False] * 3
    assert found(open_files(), memory, new) == [True] * 3
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= limit


def test_more_than_the_limit_is_cut_at_the_end(open_files, memory):
    files = open_files(limit_bytes=3 * (memory.block_bytes + 768) + 10)
    keys = chain(8)
    assert files.write(blocks(memory, keys)) == 3
    assert found(open_files(), memory, keys) == [True] * 3 + [False] * 5


def test_a_limit_without_room_for_a_block_is_refused(open_files):
    with pytest.raises(ConfigError, match="prefix_cache_dir_limit=1000 bytes holds no KV block"):
        open_files(limit_bytes=1000)


def test_a_time_to_live_counts_from_the_last_use_and_expired_files_are_deleted(open_files, memory, tmp_path):
    now = [100.0]
    files = open_files(ttl=60, clock=lambda: now[0])
    keys = chain(2)
    files.write(blocks(memory, keys, used_at=70))
    now[0] = 129
    assert found(open_files(ttl=60, clock=lambda: now[0]), memory, keys) == [True] * 2
    files = open_files(ttl=60, clock=lambda: now[0])
    files.write(blocks(memory, keys[:1], used_at=125))  # it was used again, and the file cannot be told
    now[0] = 140
    files = open_files(ttl=60, clock=lambda: now[0])
    assert found(files, memory, keys) == [True, False]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_flush_deletes_this_models_files_only(open_files, memory, tmp_path):
    other = open_files(identity={**IDENTITY, "model": "another"})
    other.write(blocks(memory, chain(1)))
    files = open_files()
    files.write(blocks(memory, chain(2)))
    files.clear()
    assert len(files) == 0 and len(list((tmp_path / "cache").iterdir())) == 1
    assert len(open_files(identity={**IDENTITY, "model": "another"})) == 1


def test_files_of_another_model_are_left_alone_with_one_warning(open_files, memory, tmp_path, caplog):
    open_files().write(blocks(memory, chain(2)))
    open_files(identity={**IDENTITY, "model": "another", "dtype": "bfloat16"})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "ignored 1 file of another dtype, model in" in record.message
    assert the_file(tmp_path).exists()


# What does not check out


def flip(raw: bytearray, where: int) -> bytes:
    raw[where] ^= 1
    return bytes(raw)


def nan_with_a_right_checksum(file: Path) -> None:
    import xxhash

    header, body = header_of(file)
    described = json.loads(header["__metadata__"]["blocks"])
    body = struct.pack("<f", float("nan")) * (len(body) // 4)
    for entry in described:
        first, last = header[entry[0]]["data_offsets"]
        entry[3] = f"{xxhash.xxh3_64_intdigest(body[first:last]):016x}"
    rewrite(file, header, body, described)


def rewrite(file: Path, header: dict, body: bytes, described: object) -> None:
    """As the writer would, with all its checksums: a hostile file is consistent in itself."""
    import xxhash

    text = described if isinstance(described, str) else json.dumps(described)
    header["__metadata__"]["blocks"] = text
    header["__metadata__"]["checksum"] = xxhash.xxh3_64_hexdigest(text.encode())
    put_header(file, header, body)


def hostile(change):
    """A file whose description was changed by somebody who can compute checksums."""

    def damage(file: Path) -> None:
        header, body = header_of(file)
        described = json.loads(header["__metadata__"]["blocks"])
        described = change(header, described) or described
        rewrite(file, header, body, described)

    return damage


def set_entry(place: int, value: object):
    def change(header, described):
        described[0][place] = value

    return hostile(change)


def set_tensor(field: str, value: object):
    def change(header, described):
        header[described[0][0]][field] = value

    return hostile(change)


AT_START = {
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(os.urandom(5000)),
    "cut in the header": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "cut in the data": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "a bit flipped in the header": lambda file: file.write_bytes(
        flip(raw := bytearray(file.read_bytes()), raw.index(b'"blocks"') + 20)
    ),
    "a header of exabytes": lambda file: file.write_bytes(b"\xff" * 8 + b"{}"),
    "a header of 20 megabytes": lambda file: file.write_bytes(struct.pack("<Q", 20 << 20) + b" " * (21 << 20)),
    "a header nested deeply": lambda file: file.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
    "a header that is a list": lambda file: file.write_bytes(struct.pack("<Q", 2) + b"[]"),
    "metadata that is no text": lambda file: put_header(file, {"__metadata__": {"format": 5}}, b""),
    "a description of another shape": hostile(lambda header, described: {"a": 1}),
    "a description nested deeply": hostile(lambda header, described: "[" * 100_000),
    "a number of ten thousand digits": hostile(lambda header, described: "[" + "9" * 10_000 + "]"),
    "a hash that is none": set_entry(0, "zz"),
    "a hash with too many digits": set_entry(1, "f" * 40),
    "a name that is no tensor": set_entry(0, "00"),
    "tokens that are no numbers": set_entry(2, ["a", "b", "c", "d"]),
    "negative tokens": set_entry(2, [-1, 0, 0, 0]),
    "tokens of another prefix": set_entry(2, [8, 8, 8, 8]),
    "offsets outside of the file": set_tensor("data_offsets", [1 << 40, (1 << 40) + 2048]),
    "negative offsets": set_tensor("data_offsets", [-2048, 0]),
    "fractional offsets": set_tensor("data_offsets", [0.5, 2048.5]),
    "offsets that are none": set_tensor("data_offsets", "ab"),
    "another shape": set_tensor("shape", [1, 2, 3]),
    "another dtype": set_tensor("dtype", "BF16"),
}
AT_READING = {
    "a bit flipped in the data": lambda file: file.write_bytes(flip(bytearray(file.read_bytes()), -3000)),
    "numbers that are not finite": nan_with_a_right_checksum,
}


@pytest.mark.parametrize("damage", AT_START)
def test_a_damaged_file_is_ignored_with_a_warning(open_files, memory, tmp_path, caplog, damage):
    open_files().write(blocks(memory, chain(3)))
    AT_START[damage](the_file(tmp_path))
    files = open_files()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "ignored" in record.message and "delete it" in record.message
    assert len(record.message) < 400 and "\n" not in record.message
    assert ("too large" in record.message) == (damage == "a header of 20 megabytes")
    assert len(files) == 0
    assert files.write(blocks(memory, chain(3))) == 3
    assert found(open_files(), memory, chain(3)) == [True] * 3, "the cache goes on beside it"


@pytest.mark.parametrize("damage", AT_READING)
def test_damage_in_the_data_is_found_when_it_is_read(open_files, memory, tmp_path, caplog, damage):
    open_files().write(blocks(memory, chain(3)))
    AT_READING[damage](the_file(tmp_path))
    files = open_files()
    assert not caplog.records
    assert not all(key in files and files.load(key, 1) for key in chain(3))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "is not used any more" in record.message
    assert len(files) == 0 and files.write(blocks(memory, chain(3))) == 3


def test_a_file_that_goes_away_or_shrinks_while_in_use_is_a_miss(open_files, memory, tmp_path, caplog):
    for end in (lambda file: file.unlink(), lambda file: os.truncate(file, 100)):
        files = open_files()
        files.write(blocks(memory, chain(1)))
        end(the_file(tmp_path))
        assert not files.load(chain(1)[0], 1) and len(files) == 0
    assert len(caplog.records) == 2


def test_times_that_are_none_do_not_live_for_ever(open_files, memory, tmp_path):
    for value in (1e300, float("nan"), float("inf")):
        open_files().write(blocks(memory, chain(1)))
        set_entry(4, value)(the_file(tmp_path))
        now = [100.0]
        files = open_files(ttl=60, clock=lambda now=now: now[0])
        assert chain(1)[0] in files
        now[0] = 161
        assert chain(1)[0] not in files
        files.clear()


def test_names_links_and_strangers_in_the_folder_are_left_alone(open_files, memory, tmp_path, caplog):
    files = open_files()
    files.write(blocks(memory, chain(1)))
    folder, outside = tmp_path / "cache", tmp_path / "outside.safetensors"
    the_file(tmp_path).rename(outside)
    (folder / "0123456789abcdef.safetensors").symlink_to(outside)
    (folder / "fedcba9876543210.safetensors").mkdir()
    strange = ["..safetensors", "a\nb\x1b[31m.safetensors", "0123456789ABCDEF.safetensors", "-rf.safetensors", "\udcff"]
    for name in strange:
        (folder / name).write_bytes(b"x")
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    save_file({"weight": torch.zeros(3000)}, folder / "aaaaaaaaaaaaaaaa.safetensors", {"format": "pt"})
    before = sorted(os.listdir(folder))
    files = open_files(limit_bytes=2000 + memory.block_bytes)
    assert len(files) == 0
    files.clear()
    assert files.write(blocks(memory, chain(1, first=5))) == 1
    assert set(before) < set(os.listdir(folder)) and outside.exists(), "nothing of others is deleted"
    assert all("\n" not in record.message and "\x1b" not in record.message for record in caplog.records)


def test_what_a_crashed_writer_left_is_cleared_away_later(open_files, tmp_path):
    open_files()
    old, new = (tmp_path / "cache" / f".unfinished-{name}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    open_files()
    assert not old.exists() and new.exists()


def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(open_files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be used .*: give a folder that can be written to") as error:
        open_files()
    assert "\n" not in str(error.value)


def test_writing_that_fails_is_a_warning(open_files, memory, tmp_path, caplog):
    files = open_files()
    (tmp_path / "cache").rmdir()
    assert files.write(blocks(memory, chain(1))) == 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "could not write" in record.message


def test_a_write_that_breaks_off_leaves_no_file(open_files, memory, tmp_path, monkeypatch, caplog):
    from playground.engine import prefix_files

    def failing(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    files = open_files()
    monkeypatch.setattr(prefix_files, "save_file", failing)
    assert files.write(blocks(memory, chain(1))) == 0
    assert list((tmp_path / "cache").iterdir()) == [] and "No space left" in caplog.records[0].message


# What a block depends on


def test_a_fingerprint_sees_weights_and_config_and_is_the_same_every_time(tmp_path):
    folder = write_tiny_model(tmp_path / "one")
    first = model_fingerprint(folder)
    assert first == model_fingerprint(folder) and len(first) == 32
    file = folder / "model.safetensors"
    times = file.stat()
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = model_fingerprint(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    assert len({first, changed, model_fingerprint(folder), model_fingerprint(file)}) == 4


# Through the engine


@pytest.fixture
def engine_of(tiny_model, tmp_path):
    """`engine_of(**fields)`: an engine that keeps its prefixes in this test's folder."""

    def make(**fields) -> Engine:
        plain = {"model": str(tiny_model), "device": "cpu", "dtype": "float64", "max_model_len": 128, "block_size": 4}
        folder = {"prefix_cache_dir": str(tmp_path / "cache")}
        return Engine(EngineConfig(**{**plain, "num_kv_blocks": 64, **folder, **fields}))

    return make


def run(engine: Engine, params: SamplingParams = GREEDY):
    results = engine.generate(PROMPTS, params)
    assert all(result.error is None for result in results) and engine.stats().kv_blocks_in_use == 0
    return [r.token_ids for r in results], sum(r.metrics.num_cached_tokens for r in results)


def test_a_restarted_engine_finds_its_prefixes_and_says_the_same(engine_of, caplog):
    with engine_of(prefix_caching=False, prefix_cache_dir=None) as engine:
        expected, _ = run(engine)
    with engine_of() as engine:
        assert run(engine)[0] == expected
        engine.pin_prefix(SYSTEM)
    with engine_of() as engine:
        engine._core.overlap = True
        tokens, cached = run(engine)
        assert tokens == expected and cached == sum((len(p) - 1) // 4 * 4 for p in PROMPTS)
        stats = engine.stats()
        assert stats.prefix_cache_disk_tokens > 0 and stats.prefix_cache_write_tokens == 0
        assert engine.config.prefix_cache_host_memory == 128 // 4 * 2048, (
            "room for one longest sequence to pass through"
        )
    with engine_of(prefix_cache_max_blocks=0, prefix_cache_host_memory=9 * 2048) as engine:
        assert run(engine)[0] == run(engine)[0] == expected
    assert not caplog.records


def test_what_was_evicted_last_is_carried_out_before_it_is_written(engine_of):
    with engine_of(prefix_cache_max_blocks=0, prefix_cache_host_memory=1 << 20) as engine:
        expected, _ = run(engine)
    with engine_of() as engine:
        tokens, cached = run(engine)
        assert tokens == expected and cached > len(SYSTEM)


def test_requests_that_run_while_the_engine_closes_do_not_cost_their_prefix(engine_of):
    with engine_of() as engine:
        handle = engine.submit(PROMPTS[0], GREEDY.replace(max_tokens=80))
        next(iter(handle))
    assert "closed" in (handle.result().error or "closed")
    with engine_of() as engine:
        assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == (len(PROMPTS[0]) - 1) // 4 * 4


def test_salted_prefixes_are_gone_after_a_restart(engine_of):
    salted = GREEDY.replace(cache_salt="mine")
    with engine_of() as engine:
        run(engine, salted)
        assert run(engine, salted)[1] > 0
    with engine_of() as engine:
        for params in (salted, GREEDY):  # one prompt alone: the second of a run would hit what the first left
            assert engine.generate(PROMPTS[0], params)[0].metrics.num_cached_tokens == 0


def test_what_another_engine_wrote_is_not_used(engine_of, caplog):
    with engine_of() as engine:
        run(engine)
    others = {
        "KV dtype, dtype": {"dtype": "float32"},
        "block size": {"block_size": 8},
        "sliding window": {"sliding_window": 30},
        "weights": {"load_format": "dummy"},
    }
    for said, fields in others.items():
        caplog.clear()
        with engine_of(**fields) as engine:
            assert any(f"of another {said} in" in record.message for record in caplog.records)
            assert run(engine)[1] <= len(SYSTEM) and engine.stats().prefix_cache_disk_tokens == 0


def test_weights_that_changed_in_place_make_the_files_foreign(engine_of, tmp_path, caplog):
    model = write_tiny_model(tmp_path / "model")
    with engine_of(model=str(model)) as engine:
        run(engine)
    write_tiny_model(tmp_path / "model", seed=1)
    with engine_of(model=str(model), prefix_caching=False, prefix_cache_dir=None) as engine:
        expected, _ = run(engine)
    with engine_of(model=str(model)) as engine:
        assert "of another model" in caplog.records[-1].message
        assert run(engine)[0] == expected


def test_an_engine_goes_on_where_every_file_is_damaged(engine_of, tmp_path, caplog):
    with engine_of() as engine:
        expected, _ = run(engine)
    header, body = header_of(the_file(tmp_path))
    put_header(the_file(tmp_path), header, os.urandom(len(body)))
    with engine_of() as engine:
        assert run(engine)[0] == expected
        assert run(engine)[0] == expected
    assert any("checksum" in record.message for record in caplog.records)
    with engine_of() as engine:
        assert run(engine)[0] == expected


def test_a_flush_deletes_the_files(engine_of, tmp_path):
    with engine_of() as engine:
        run(engine)
    with engine_of() as engine:
        engine.flush_prefix_cache()
        assert engine.generate(PROMPTS[0], GREEDY)[0].metrics.num_cached_tokens == 0
        engine.flush_prefix_cache()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_vanishes_does_not_disturb_the_close(engine_of, tmp_path, caplog):
    with engine_of() as engine:
        run(engine)
        (tmp_path / "cache").rmdir()
    assert "could not write" in caplog.records[-1].message
