"""What engines told while they were watched: recordings, requests, steps, tokens, blocks, samples; and settings.

Runs that were stored before become requests without a recording, so that they are listed with the others.
"""

import json
import re
from array import array
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FINISHES = ("stop", "length", "abort", "error")
ENDED = {"stopped": "abort", "error": "error"}
COPIED = (
    "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions", "num_draft_tokens",
    "num_accepted_tokens", "kv_blocks_peak", "queue_ns", "time_to_first_token_ns", "time_per_output_token_ns",
    "e2e_latency_ns", "params", "message_id", "config_id", "created_ms",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "setting",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_setting")),
    )
    op.create_table(
        "recording",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("config_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.CheckConstraint("origin IN ('here', 'imported')", name=op.f("ck_recording_origin")),
        sa.ForeignKeyConstraint(["config_id"], ["config.id"], name=op.f("fk_recording_config_id_config")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recording")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("recording", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_recording_config_id"), ["config_id"], unique=False)

    op.create_table(
        "request",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recording_id", sa.Integer(), nullable=True),
        sa.Column("engine_id", sa.Integer(), nullable=True),
        sa.Column("first_segment", sa.Integer(), nullable=True),
        sa.Column("last_segment", sa.Integer(), nullable=True),
        sa.Column("chat_id", sa.Integer(), nullable=True),
        sa.Column("message_id", sa.Integer(), nullable=True),
        sa.Column("config_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("params", sa.Text(), nullable=False),
        sa.Column("finish", sa.Text(), nullable=True),
        sa.Column("num_prompt_tokens", sa.Integer(), nullable=True),
        sa.Column("num_output_tokens", sa.Integer(), nullable=True),
        sa.Column("num_cached_tokens", sa.Integer(), nullable=True),
        sa.Column("num_cache_write_tokens", sa.Integer(), nullable=True),
        sa.Column("num_preemptions", sa.Integer(), nullable=True),
        sa.Column("num_draft_tokens", sa.Integer(), nullable=True),
        sa.Column("num_accepted_tokens", sa.Integer(), nullable=True),
        sa.Column("kv_blocks_peak", sa.Integer(), nullable=True),
        sa.Column("queue_ns", sa.Integer(), nullable=True),
        sa.Column("time_to_first_token_ns", sa.Integer(), nullable=True),
        sa.Column("time_per_output_token_ns", sa.Integer(), nullable=True),
        sa.Column("e2e_latency_ns", sa.Integer(), nullable=True),
        sa.Column("gaps", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("finish IN ('stop', 'length', 'abort', 'error')", name=op.f("ck_request_finish")),
        sa.ForeignKeyConstraint(["chat_id"], ["chat.id"], name=op.f("fk_request_chat_id_chat"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["config_id"], ["config.id"], name=op.f("fk_request_config_id_config")),
        sa.ForeignKeyConstraint(
            ["message_id"], ["message.id"], name=op.f("fk_request_message_id_message"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recording.id"], name=op.f("fk_request_recording_id_recording"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
        sa.UniqueConstraint("recording_id", "engine_id", name=op.f("uq_request_recording_id_engine_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_request_chat_id"), ["chat_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_request_config_id"), ["config_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_request_created_ms"), ["created_ms"], unique=False)
        batch_op.create_index(batch_op.f("ix_request_message_id"), ["message_id"], unique=False)

    op.create_table(
        "segment",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("keyframe", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recording.id"], name=op.f("fk_segment_recording_id_recording"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recording_id", "number", name=op.f("pk_segment")),
    )
    op.create_table(
        "block_event",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("time_ns", sa.Integer(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("block_id", sa.Integer(), nullable=False),
        sa.Column("ref_count", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Integer(), nullable=True),
        sa.Column("source_block_id", sa.Integer(), nullable=True),
        sa.Column("logical_index", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_block_event_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_block_event")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "request_event",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("time_ns", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("num_prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("num_cached_tokens", sa.Integer(), nullable=False),
        sa.Column("num_output_tokens", sa.Integer(), nullable=False),
        sa.Column("num_cache_write_tokens", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_request_event_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_request_event")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sample",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("time_ns", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("used_bytes", sa.Integer(), nullable=True),
        sa.Column("total_bytes", sa.Integer(), nullable=True),
        sa.Column("reserved_bytes", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_sample_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_sample")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "step",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("time_ns", sa.Integer(), nullable=False),
        sa.Column("schedule_ns", sa.Integer(), nullable=False),
        sa.Column("draft_ns", sa.Integer(), nullable=False),
        sa.Column("prepare_ns", sa.Integer(), nullable=False),
        sa.Column("forward_ns", sa.Integer(), nullable=False),
        sa.Column("sample_ns", sa.Integer(), nullable=False),
        sa.Column("post_ns", sa.Integer(), nullable=False),
        sa.Column("num_prefill_tokens", sa.Integer(), nullable=False),
        sa.Column("num_decode_tokens", sa.Integer(), nullable=False),
        sa.Column("num_draft_tokens", sa.Integer(), nullable=False),
        sa.Column("num_accepted_tokens", sa.Integer(), nullable=False),
        sa.Column("num_emitted_tokens", sa.Integer(), nullable=False),
        sa.Column("num_running", sa.Integer(), nullable=False),
        sa.Column("num_waiting", sa.Integer(), nullable=False),
        sa.Column("num_preempted", sa.Integer(), nullable=False),
        sa.Column("kv_blocks_in_use", sa.Integer(), nullable=False),
        sa.Column("kv_blocks_cached", sa.Integer(), nullable=False),
        sa.Column("kv_blocks_empty", sa.Integer(), nullable=False),
        sa.Column("kv_slots_in_use", sa.Integer(), nullable=False),
        sa.Column("slices", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_step_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_step")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "token",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("request", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("logprob", sa.Float(), nullable=True),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("draft_position", sa.Integer(), nullable=True),
        sa.CheckConstraint("origin IN ('target', 'accepted', 'bonus', 'rejected')", name=op.f("ck_token_origin")),
        sa.ForeignKeyConstraint(
            ["recording_id", "request"],
            ["request.recording_id", "request.engine_id"],
            name=op.f("fk_token_recording_id_request"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_token_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_token")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_token_recording_id_request"), ["recording_id", "request"], unique=False)

    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("num_cache_write_tokens", sa.Integer(), nullable=True))

    _keep_cache_writes()
    _list_stored_runs()


def _keep_cache_writes() -> None:
    """The count had no column, so it was among the other metrics."""
    path = "'$.num_cache_write_tokens'"
    op.execute(
        f"UPDATE run SET num_cache_write_tokens = json_extract(metrics, {path}), "
        f"metrics = json_remove(metrics, {path}) "
        f"WHERE json_type(metrics, {path}) = 'integer'"
    )


def _list_stored_runs() -> None:
    connection = op.get_bind()
    runs = connection.execute(
        sa.text(
            "SELECT run.*, config.json AS config, message.chat_id AS chat_id, question.content AS prompt FROM run "
            "JOIN message ON message.id = run.message_id JOIN config ON config.id = run.config_id "
            "LEFT JOIN message AS question ON question.id = message.parent_id"
        )
    ).mappings()
    rows = [_request(run) for run in runs]
    if rows:
        names = ", ".join(rows[0])
        values = ", ".join(f":{name}" for name in rows[0])
        connection.execute(sa.text(f"INSERT INTO request ({names}) VALUES ({values})"), rows)


def _request(run: Any) -> dict[str, Any]:
    metrics, config = json.loads(run["metrics"]), json.loads(run["config"])
    finish = metrics.get("finish_reason")
    gaps = metrics.get("inter_token_latencies")
    known = isinstance(gaps, list) and all(isinstance(gap, int | float) for gap in gaps)
    model = str(config.get("model") or "") if isinstance(config, dict) else ""
    return {
        **{name: run[name] for name in COPIED},
        "num_cache_write_tokens": run["num_cache_write_tokens"],
        "chat_id": run["chat_id"],
        "prompt": run["prompt"] or "",
        "model": re.split(r"[/\\]", model)[-1],
        "finish": finish if finish in FINISHES else ENDED.get(run["status"], "stop"),
        "gaps": array("f", gaps).tobytes() if known and gaps else None,
    }


def downgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("num_cache_write_tokens")

    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_token_recording_id_request"))

    op.drop_table("token")
    op.drop_table("step")
    op.drop_table("sample")
    op.drop_table("request_event")
    op.drop_table("block_event")
    op.drop_table("segment")
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_request_message_id"))
        batch_op.drop_index(batch_op.f("ix_request_created_ms"))
        batch_op.drop_index(batch_op.f("ix_request_config_id"))
        batch_op.drop_index(batch_op.f("ix_request_chat_id"))

    op.drop_table("request")
    with op.batch_alter_table("recording", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_recording_config_id"))

    op.drop_table("recording")
    op.drop_table("setting")
