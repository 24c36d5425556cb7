-- Everything that cluster.Server says of a server, in one row of JSON. It runs
-- on a primary and on a standby, as a member of pg_monitor. $1: the names of
-- the settings to read.
--
-- A promotion may end recovery half-way through, so the role is read once; the
-- functions called in recovery alone are those that also answer after it.
WITH
role AS MATERIALIZED (
    SELECT pg_is_in_recovery() AS recovering),
-- The replayed position first: what is read later is never behind it.
replayed AS MATERIALIZED (
    SELECT recovering, CASE WHEN recovering THEN pg_last_wal_replay_lsn() END AS replayed FROM role),
position AS MATERIALIZED (
    SELECT recovering, replayed,
        CASE WHEN recovering THEN GREATEST(replayed, pg_last_wal_receive_lsn()) END AS received,
        CASE WHEN NOT recovering THEN pg_current_wal_flush_lsn() END AS flushed
    FROM replayed),
client AS (
    SELECT pid, usename, application_name, datname, state, host(client_addr) AS address,
        (extract(epoch FROM clock_timestamp() - xact_start) * 1000000)::bigint AS age_us
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND xact_start IS NOT NULL AND usename <> current_user
    ORDER BY xact_start LIMIT 100)
SELECT jsonb_build_object(
    'recovering', recovering,
    'system_id', (SELECT system_identifier::text FROM pg_control_system()),
    -- The control file of a promoted server names its timeline only after the
    -- next checkpoint; the name of the current WAL file does at once. A standby
    -- is on the newest timeline that it receives or has replayed from.
    'timeline', CASE WHEN recovering
        THEN GREATEST((SELECT received_tli FROM pg_stat_wal_receiver),
            (SELECT timeline_id FROM pg_control_checkpoint()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
        ELSE ('x' || left(pg_walfile_name(flushed), 8))::bit(32)::bigint END,
    'started_at', pg_postmaster_start_time(),
    'flushed', flushed,
    'received', received,
    'replayed', replayed,
    'lag_us', CASE WHEN replayed < received
        THEN (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000000)::bigint END,
    'receiver', (SELECT jsonb_build_object('status', status, 'host', sender_host, 'slot', slot_name,
            'last_message_at', last_msg_receipt_time)
        FROM pg_stat_wal_receiver),
    'senders', (SELECT jsonb_agg(jsonb_build_object('application', application_name, 'state', state,
            'sent', sent_lsn, 'flushed', flush_lsn, 'replayed', replay_lsn, 'sync_state', sync_state,
            -- By the standby's clock: both nodes are on this host.
            'silent_us', (extract(epoch FROM clock_timestamp() - reply_time) * 1000000)::bigint) ORDER BY application_name, pid)
        FROM pg_stat_replication),
    'slots', (SELECT jsonb_agg(jsonb_build_object('name', slot_name, 'active', active, 'restart', restart_lsn,
            'wal_status', wal_status, 'lag_bytes', GREATEST(pg_wal_lsn_diff(COALESCE(flushed, received), restart_lsn), 0)::bigint,
            'logical', slot_type = 'logical', 'database', database) ORDER BY slot_name)
        FROM pg_replication_slots),
    'settings', (SELECT jsonb_object_agg(name, current_setting(name)) FROM unnest($1::text[]) AS name),
    -- What ALTER SYSTEM sets wins over the files that controld writes.
    'overridden', (SELECT jsonb_agg(name ORDER BY name) FROM pg_settings
        WHERE name = ANY ($1) AND sourcefile LIKE '%/postgresql.auto.conf'),
    'pending_restart', (SELECT jsonb_agg(name ORDER BY name) FROM pg_settings WHERE pending_restart),
    -- Of database postgres, where controld's sessions are.
    'rights', obj_description(to_regnamespace('controld'), 'pg_namespace'),
    'archive_ready', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
    'archiver', (SELECT jsonb_build_object('failed_count', failed_count, 'last_failed', last_failed_wal, 'last_failed_at', last_failed_time,
            'last_at', last_archived_time)
        FROM pg_stat_archiver),
    'prepared_count', (SELECT count(*) FROM pg_prepared_xacts),
    'transactions', (SELECT jsonb_agg(jsonb_build_object('pid', pid, 'user', usename, 'application', application_name,
            'database', datname, 'address', address, 'state', state, 'age_us', age_us) ORDER BY age_us DESC)
        FROM client),
    'replay_paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
    -- A backup that a session began by hand shows nowhere but in what it asked.
    'backup_running', EXISTS (SELECT FROM pg_stat_progress_basebackup)
        OR EXISTS (SELECT FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND usename NOT IN (current_user, 'backup') AND query ILIKE '%pg_backup_start%'),
    'max_senders', current_setting('max_wal_senders')::int,
    'max_slots', current_setting('max_replication_slots')::int,
    'segment_bytes', pg_size_bytes(current_setting('wal_segment_size')))
FROM position
