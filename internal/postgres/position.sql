-- The little that is polled inside a failover's pause. See observe.sql for
-- what the timeline is; the control file is read only where no walreceiver
-- knows better.
WITH
role AS MATERIALIZED (
    SELECT pg_is_in_recovery() AS recovering),
position AS MATERIALIZED (
    SELECT recovering,
        CASE WHEN recovering THEN pg_last_wal_replay_lsn() END AS replayed,
        CASE WHEN NOT recovering THEN pg_current_wal_flush_lsn() END AS flushed
    FROM role)
SELECT recovering,
    CASE WHEN recovering
        THEN GREATEST((SELECT received_tli FROM pg_stat_wal_receiver),
            (SELECT timeline_id FROM pg_control_checkpoint()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
        ELSE ('x' || left(pg_walfile_name(flushed), 8))::bit(32)::bigint END,
    CASE WHEN recovering THEN GREATEST(replayed, pg_last_wal_receive_lsn()) END,
    replayed,
    flushed
FROM position
