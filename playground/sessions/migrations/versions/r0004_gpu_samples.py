"""Readings of the GPU beside those of the memory"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gpu_sample",
        sa.Column("recording_id", sa.Integer(), nullable=False),
        sa.Column("segment", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("time_ns", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Float(), nullable=True),
        sa.Column("power_w", sa.Float(), nullable=True),
        sa.Column("power_limit_w", sa.Float(), nullable=True),
        sa.Column("clock_mhz", sa.Integer(), nullable=True),
        sa.Column("clock_limit_mhz", sa.Integer(), nullable=True),
        sa.Column("slowed", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(
            ["recording_id", "segment"],
            ["segment.recording_id", "segment.number"],
            name=op.f("fk_gpu_sample_recording_id_segment"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recording_id", "segment", "seq", name=op.f("pk_gpu_sample")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("gpu_sample")
