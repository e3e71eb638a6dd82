-- A chat database as schema 0001 wrote it. Never edited: it stands for the files that people have.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE chat (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	title TEXT NOT NULL, 
	title_is_automatic BOOLEAN NOT NULL, 
	system_prompt TEXT NOT NULL, 
	head_message_id INTEGER, 
	created_ms INTEGER NOT NULL, 
	updated_ms INTEGER NOT NULL
);
INSERT INTO "chat" VALUES(1,'A fox in the snow',0,'Tell stories.',2,1795233388569,1795233388594);
CREATE TABLE config (
	id TEXT NOT NULL, 
	json TEXT NOT NULL, 
	CONSTRAINT pk_config PRIMARY KEY (id)
);
INSERT INTO "config" VALUES('addf234ab11ac58f46c7ff8973cde6e8345619dcd617b50e14e6160c763e0fbe','{"block_size":16}');
CREATE TABLE message (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	chat_id INTEGER NOT NULL, 
	parent_id INTEGER, 
	role TEXT NOT NULL, 
	content TEXT NOT NULL, 
	created_ms INTEGER NOT NULL, 
	CONSTRAINT ck_message_role CHECK (role IN ('user', 'assistant')), 
	CONSTRAINT fk_message_chat_id_chat FOREIGN KEY(chat_id) REFERENCES chat (id) ON DELETE CASCADE, 
	CONSTRAINT fk_message_parent_id_message FOREIGN KEY(parent_id) REFERENCES message (id)
);
INSERT INTO "message" VALUES(1,1,NULL,'user','A fox in the snow',1795233388572);
INSERT INTO "message" VALUES(2,1,1,'assistant','Once upon a time there was a fox.',1795233388576);
CREATE TABLE run (
	id INTEGER NOT NULL, 
	message_id INTEGER NOT NULL, 
	config_id TEXT NOT NULL, 
	status TEXT NOT NULL, 
	seed INTEGER, 
	created_ms INTEGER NOT NULL, 
	num_prompt_tokens INTEGER, 
	num_output_tokens INTEGER, 
	num_cached_tokens INTEGER, 
	num_preemptions INTEGER, 
	num_draft_tokens INTEGER, 
	num_accepted_tokens INTEGER, 
	kv_blocks_peak INTEGER, 
	queue_ns INTEGER, 
	time_to_first_token_ns INTEGER, 
	time_per_output_token_ns INTEGER, 
	e2e_latency_ns INTEGER, 
	metrics TEXT NOT NULL, 
	params TEXT NOT NULL, 
	CONSTRAINT pk_run PRIMARY KEY (id), 
	CONSTRAINT ck_run_status CHECK (status IN ('done', 'stopped', 'error')), 
	CONSTRAINT fk_run_config_id_config FOREIGN KEY(config_id) REFERENCES config (id), 
	CONSTRAINT fk_run_message_id_message FOREIGN KEY(message_id) REFERENCES message (id) ON DELETE CASCADE
);
INSERT INTO "run" VALUES(1,2,'addf234ab11ac58f46c7ff8973cde6e8345619dcd617b50e14e6160c763e0fbe','done',7,1795233388593,NULL,9,NULL,NULL,NULL,NULL,NULL,NULL,250000000,NULL,NULL,'{"inter_token_latencies":[0.02,0.03]}','{"temperature":0.7}');
CREATE INDEX ix_chat_updated_ms_id ON chat (updated_ms, id);
CREATE INDEX ix_message_chat_id_parent_id ON message (chat_id, parent_id);
CREATE INDEX ix_message_parent_id ON message (parent_id);
CREATE INDEX ix_run_config_id ON run (config_id);
CREATE UNIQUE INDEX ix_run_message_id ON run (message_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('chat',1);
INSERT INTO "sqlite_sequence" VALUES('message',2);
COMMIT;
