-- compare_schema.sql: what comparing writes down: runs, their results, the
-- chunks of a full pass, what differs, and how far windows came.

CREATE TABLE cutover._compare_run (
	run bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	method text NOT NULL CHECK (method IN ('auto', 'window', 'changes', 'full', 'known')),	-- as asked for; known: by a repair
	state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed', 'stopped')),
	started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	ended_at timestamptz,
	actor name NOT NULL,
	pid int,									-- of the worker that coordinates; NULL once it ended
	tables int[] NOT NULL DEFAULT '{}',
	since timestamptz,							-- as asked for
	until timestamptz,
	time_zone text,								-- of the caller: what a time stamp without one means
	snapshot pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),	-- when it began
	horizon timestamptz,						-- no transaction that wrote then had begun before
	error text,									-- may hold row values
	sqlstate text,
	detail text,
	hint text
);
CREATE INDEX ON cutover._compare_run (target_id, run);

-- One row for each table and method of a run: 'auto' has up to two.
CREATE TABLE cutover._compare_result (
	run bigint NOT NULL REFERENCES cutover._compare_run ON DELETE CASCADE,
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE,
	method text NOT NULL CHECK (method IN ('window', 'changes', 'full', 'known')),
	since timestamptz,							-- NULL: from the beginning
	until timestamptz,
	rows bigint NOT NULL DEFAULT 0,				-- read on the side that is right
	missing bigint NOT NULL DEFAULT 0,
	extra bigint NOT NULL DEFAULT 0,
	different bigint NOT NULL DEFAULT 0,
	representation bigint NOT NULL DEFAULT 0,
	deferred bigint NOT NULL DEFAULT 0,
	capped boolean NOT NULL DEFAULT false,		-- more differ than cutover.max_divergences has room for
	duration interval,
	started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	complete boolean NOT NULL DEFAULT false,	-- false: under way, or broken off
	chunks_done int NOT NULL DEFAULT 0,
	chunks_total int,							-- NULL: not known yet
	planning boolean NOT NULL DEFAULT false,	-- a worker is about to cut it into chunks
	waiting_for text,							-- why it does not go faster, in words
	PRIMARY KEY (run, table_id, method)
);
CREATE INDEX ON cutover._compare_result (table_id, run);

-- Parts of a full pass.  pending -> running -> done; who finds a running one
-- of a dead worker sets it back, since reading twice does no harm.
CREATE TABLE cutover._compare_chunk (
	run bigint NOT NULL,
	table_id int NOT NULL,
	method text NOT NULL,
	chunk_no int NOT NULL,
	kind text NOT NULL							-- keys: known to differ; range: of the key; hash: of the key; time: of the
		CHECK (kind IN ('keys', 'range', 'hash', 'time', 'queue')),	-- version column; queue: what changed
	lower text[],								-- inclusive; NULL = from the start
	upper text[],								-- exclusive; NULL = to the end
	state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done')),
	worker int,									-- number of the worker that took it
	rows bigint NOT NULL DEFAULT 0,
	missing bigint NOT NULL DEFAULT 0,
	extra bigint NOT NULL DEFAULT 0,
	different bigint NOT NULL DEFAULT 0,
	representation bigint NOT NULL DEFAULT 0,
	deferred bigint NOT NULL DEFAULT 0,
	capped boolean NOT NULL DEFAULT false,
	PRIMARY KEY (run, table_id, method, chunk_no),
	FOREIGN KEY (run) REFERENCES cutover._compare_run ON DELETE CASCADE,
	FOREIGN KEY (table_id) REFERENCES cutover._table ON DELETE CASCADE
);
CREATE INDEX ON cutover._compare_chunk (run, table_id, method, chunk_no) WHERE state <> 'done';

-- Open differences; a row goes once both sides were found equal again.
CREATE TABLE cutover._divergence (
	divergence_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE,
	key jsonb NOT NULL,							-- column of old -> text; whole row where there is no key
	kind text NOT NULL CHECK (kind IN ('missing', 'extra', 'different', 'representation')),
	columns text[],								-- of new, that differ; NULL where a row is on one side only
	old_row jsonb,								-- as new should have it; NULL: not there
	new_row jsonb,
	first_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
	last_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
	times_seen bigint NOT NULL DEFAULT 1,
	state text NOT NULL DEFAULT 'confirmed' CHECK (state IN ('confirmed', 'deferred', 'compensating')),
	copies bigint NOT NULL DEFAULT 1,			-- of the row, too few or too many; without a key only
	run bigint,									-- that saw it last, and by which method
	method text
);
-- A row as key may be too large for an index: two hashes stand for it.
CREATE UNIQUE INDEX _divergence_key ON cutover._divergence (table_id, jsonb_hash_extended(key, 0), jsonb_hash_extended(key, 1));
CREATE INDEX ON cutover._divergence (target_id);

-- Queue segments that hold changes after a pin's snapshot are not reused.  A pin
-- whose process is gone counts for nothing.
CREATE TABLE cutover._compare_pin (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	pid int NOT NULL,
	snapshot pg_snapshot NOT NULL,
	since timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (target_id, pid)
);

-- Where consecutive windows go on.
CREATE TABLE cutover._compare_position (
	table_id int PRIMARY KEY REFERENCES cutover._table ON DELETE CASCADE,
	until timestamptz,							-- by version column; NULL = not yet
	snapshot pg_snapshot						-- by changes: what this saw has been looked at
);
