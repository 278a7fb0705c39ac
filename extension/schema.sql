-- schema.sql: roles, schema and tables.  Everything here is a member of the
-- extension and nothing is a configuration table: a dump of this database
-- restores to an inert extension without targets.

DO $$
BEGIN
	IF '@extschema@' = 'cutover' THEN
		RAISE EXCEPTION 'extension "cutover" cannot be created in schema "cutover"'
			USING ERRCODE = '22023',
			DETAIL = 'Schema "cutover" holds the views and internals of the extension.',
			HINT = 'Use another schema, for example CREATE EXTENSION cutover SCHEMA public.';
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cutover_admin') THEN
		CREATE ROLE cutover_admin NOLOGIN;
	END IF;
END
$$;

CREATE SCHEMA cutover;
GRANT USAGE ON SCHEMA cutover TO cutover_admin, pg_monitor;

CREATE SEQUENCE cutover._target_id_seq AS int;
CREATE SEQUENCE cutover._table_id_seq AS int;
CREATE SEQUENCE cutover._layout_id_seq AS int;

-- One row for each new database.  Written by functions and actions; the
-- replicator writes rewound and write_segment.  Backends cache it: every change is
-- followed by a relcache invalidation of this table.
CREATE TABLE cutover._target (
	target_id int PRIMARY KEY DEFAULT nextval('cutover._target_id_seq'),
	target name NOT NULL UNIQUE,
	server name NOT NULL UNIQUE,				-- foreign server that holds the address
	migration_id uuid NOT NULL UNIQUE,			-- how new knows us
	system_identifier bigint NOT NULL,			-- of the cluster that may act; a restored copy differs
	desired text NOT NULL DEFAULT 'idle'
		CHECK (desired IN ('idle', 'running', 'paused', 'finished')),
	rewound boolean NOT NULL DEFAULT false,		-- new had what old lost
	rewound_at timestamptz,						-- when that was found last
	mode text NOT NULL DEFAULT 'old_only'
		CHECK (mode IN ('old_only', 'dual_write', 'new_only')),
	epoch bigint NOT NULL DEFAULT 1,			-- +1 at every change of mode
	old_writes text NOT NULL DEFAULT 'reject'	-- in new_only: what old does with them
		CHECK (old_writes IN ('reject', 'forward')),
	master_since timestamptz NOT NULL DEFAULT now(),	-- when the side that accepts writes last changed
	-- a switch between old and new as master that is under way; NULL = none
	switch_state text CHECK (switch_state IN ('preparing', 'in_doubt')),
	switch_to text CHECK (switch_to IN ('old_only', 'dual_write', 'new_only')),
	switch_epoch bigint,						-- that new will record
	switch_options jsonb,						-- what the caller asked for, to go on after a crash
	old_read_only boolean NOT NULL DEFAULT false,	-- we have made new sessions of this database read-only
	operator_epoch bigint,						-- of a switch that an operator has decided: new is told
	new_address text,							-- where new is, once the connection is gone
	write_ratio numeric NOT NULL DEFAULT 100,
	read_ratio numeric NOT NULL DEFAULT 0,
	shadow_ratio numeric NOT NULL DEFAULT 0,
	write_segment int NOT NULL DEFAULT 0 CHECK (write_segment BETWEEN 0 AND 2),
	rotations bigint NOT NULL DEFAULT 0,
	rotated_at timestamptz NOT NULL DEFAULT now(),
	created_at timestamptz NOT NULL DEFAULT now(),
	started_at timestamptz
);

-- One row for each table under migration: an ordinary table, the root of a
-- partition tree, or a child in an inheritance tree.
CREATE TABLE cutover._table (
	table_id int PRIMARY KEY DEFAULT nextval('cutover._table_id_seq'),
	target_id int NOT NULL REFERENCES cutover._target,
	old_table oid NOT NULL UNIQUE,				-- pg_class.oid on old
	new_schema name NOT NULL,
	new_name name NOT NULL,
	default_columns boolean NOT NULL,			-- same names, follows added columns by itself
	row_filter text,							-- as given
	row_filter_expr pg_node_tree,				-- the same, compiled against old_table
	version_column name,
	final_when text,							-- as given
	final_when_expr pg_node_tree,				-- the same, compiled against old_table
	shard_by text,
	reverse_columns jsonb,
	key_attnums int2[] NOT NULL,				-- of old_table, in index order; empty = whole row
	phase text NOT NULL DEFAULT 'waiting'
		CHECK (phase IN ('waiting', 'copying', 'catching_up', 'indexing', 'synced', 'resync_needed')),
	copy boolean NOT NULL DEFAULT true,			-- false: new already holds the rows
	copy_generation int NOT NULL DEFAULT 0,		-- +1 at every copy from the start
	phase_reason text,							-- why resync is needed, in words
	phase_since timestamptz NOT NULL DEFAULT now(),
	rows_total bigint,							-- estimate at the start of the copy
	bytes_total bigint,
	copy_started_at timestamptz,
	copy_ended_at timestamptz,
	caught_up_k bigint,							-- window that brought the copy up to date
	reverse_closed text,						-- why old can't follow new for this table, in words; NULL = it can
	last_compared_at timestamptz,				-- end of the last complete pass
	clean_passes int NOT NULL DEFAULT 0,		-- passes without difference since the last repair
	repaired_at timestamptz,					-- when that began, or ended
	added_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON cutover._table (target_id);

-- How the columns of new are made.  With default_columns only those columns
-- stand here that were known when the table was added.
CREATE TABLE cutover._column (
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE,
	new_column name NOT NULL,
	attnum int2,								-- plain column of old_table, or NULL:
	expression text,							-- as given
	expr pg_node_tree,							-- the same, compiled against old_table
	PRIMARY KEY (table_id, new_column)
);

-- Relations that belong to a table: itself, its leaf partitions.  Compared with
-- the catalogs after every DDL to find partitions that came or went.
CREATE TABLE cutover._member (
	relid oid PRIMARY KEY,
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE
);
CREATE INDEX ON cutover._member (table_id);

-- The row layout that a captured image was made with.  Written by the first
-- capture that meets a relation in that shape; never changed.
CREATE TABLE cutover._layout (
	layout_id int PRIMARY KEY,
	table_id int NOT NULL,						-- no foreign key: blocks outlive the table's entry
	relid oid NOT NULL,							-- the relation that fired: leaf, child or the table itself
	attname name[] NOT NULL,					-- all arrays: one entry for each attnum from 1 on
	atttypid oid[] NOT NULL,					-- 0 = dropped
	atttypmod int4[] NOT NULL,
	attlen int2[] NOT NULL,
	attbyval bool[] NOT NULL,
	attalign "char"[] NOT NULL,
	attstorage "char"[] NOT NULL,
	attcollation oid[] NOT NULL,
	root_attnum int2[] NOT NULL,				-- attnum in the table's root, 0 = none
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON cutover._layout (relid);

-- What old has durably promised: written and flushed before window k is applied.
CREATE TABLE cutover._marker (
	target_id int NOT NULL REFERENCES cutover._target,
	direction text NOT NULL DEFAULT 'forward' CHECK (direction IN ('forward', 'reverse')),
	k bigint NOT NULL,
	snapshot pg_snapshot NOT NULL,				-- S(k)
	acked_snapshot pg_snapshot NOT NULL,		-- S(k-1): new has all of it
	taken_at timestamptz NOT NULL,
	name text,									-- drawn at random: a copy of old has windows with the same k, and maybe the same snapshot
	PRIMARY KEY (target_id, direction)
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000);

-- How far back new may fall and still find its changes in the queue.
CREATE TABLE cutover._rotation (
	target_id int PRIMARY KEY REFERENCES cutover._target,
	rotated_k bigint NOT NULL,					-- confirmed by new when the present segment was begun
	rotated_snapshot pg_snapshot NOT NULL,
	truncated_k bigint NOT NULL,				-- windows up to this one may be gone from the queue
	kept_snapshot pg_snapshot,					-- what this does not see is all there still; NULL: nothing has gone
	kept_since timestamptz						-- the same as a time
);

-- What could be seen at some moments: turns a time into a place of the queue.  at
-- is later than the snapshot: what commits after it is not seen.
CREATE TABLE cutover._queue_moment (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	at timestamptz NOT NULL,
	snapshot pg_snapshot NOT NULL,
	PRIMARY KEY (target_id, at)
);

-- Parts of tables being copied.  A chunk goes pending -> copying -> done; a
-- copying chunk whose copier died is taken over as it is, never set back: new may have it.
CREATE TABLE cutover._chunk (
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE,
	generation int NOT NULL,
	chunk_no int NOT NULL,
	relid oid,									-- chunks by block only: the relation (a leaf partition or the table itself)
	lower text[],								-- key values or a block number, inclusive; NULL = from the start
	upper text[],								-- exclusive; NULL = to the end
	state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'copying', 'done')),
	snapshot pg_snapshot,						-- the chunk holds exactly what this saw; once done
	rows bigint,
	bytes bigint,
	filenode oid,								-- chunks by block only: the file that lower and upper are blocks of
	copier int,									-- number of the copier that took it
	started_at timestamptz,
	done_at timestamptz,
	PRIMARY KEY (table_id, chunk_no)
);
CREATE INDEX ON cutover._chunk (table_id, state, chunk_no) WHERE state <> 'done';

-- Keys that new rejected; each is only refreshed from then on.
CREATE TABLE cutover._apply_error (
	error_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_id int NOT NULL REFERENCES cutover._target,
	direction text NOT NULL DEFAULT 'forward',
	table_id int REFERENCES cutover._table ON DELETE CASCADE,	-- NULL: a schema change
	key jsonb,									-- column of old -> text; whole row where there is no key
	sqlstate text NOT NULL,
	message text NOT NULL,						-- may hold row values
	source jsonb,								-- reverse: what to put into new's queue to try again
	attempts int NOT NULL DEFAULT 1,
	first_at timestamptz NOT NULL DEFAULT now(),
	last_at timestamptz NOT NULL DEFAULT now(),
	UNIQUE NULLS NOT DISTINCT (target_id, direction, table_id, key)
);

CREATE TABLE cutover._event (
	event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	actor name NOT NULL,
	kind text NOT NULL,
	detail jsonb NOT NULL DEFAULT '{}',
	target_id int,
	target name
);
