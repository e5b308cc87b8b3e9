-- The role that Grafana uses. Apply this once as a superuser, in the database of the events and before events-to-postgres
-- first connects, with a password of your own.
--
-- A user who may view a dashboard may send any statement to its data source. So permissions are revoked from this role,
-- not only set for its sessions: a session can lift its own statement_timeout (SET needs no permission), and
-- events-to-postgres ends queries that run on. For that, the database's owner, as which it connects, becomes a member of
-- this role.
CREATE ROLE grafana LOGIN PASSWORD 'grafana' NOINHERIT CONNECTION LIMIT 10;
ALTER ROLE grafana SET statement_timeout = '30s';
ALTER ROLE grafana SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE grafana SET default_transaction_read_only = on;
-- Only a superuser can change this one: what a query spills to disk.
ALTER ROLE grafana SET temp_file_limit = '256MB';

-- No temporary tables, no tables of its own.
DO $$
BEGIN
  EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
  REVOKE CREATE ON SCHEMA public FROM PUBLIC;
  EXECUTE format('GRANT CREATE ON SCHEMA public TO %1$I; GRANT grafana TO %1$I', (
    SELECT rolname FROM pg_roles JOIN pg_database ON datdba = pg_roles.oid WHERE datname = current_database()
  ));
END
$$;
-- No large objects, which even a read-only transaction allows.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea), lo_put(oid, bigint, bytea),
  lo_open(oid, integer), lowrite(integer, bytea), lo_truncate(integer, integer), lo_truncate64(integer, bigint),
  lo_unlink(oid) FROM PUBLIC;
-- No sleeping, and no locks that others would wait for.
REVOKE EXECUTE ON FUNCTION pg_sleep(double precision), pg_sleep_for(interval), pg_sleep_until(timestamptz),
  pg_advisory_lock(bigint), pg_advisory_lock(integer, integer), pg_advisory_xact_lock(bigint),
  pg_advisory_xact_lock(integer, integer) FROM PUBLIC;
