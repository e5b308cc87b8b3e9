-- The role by which Grafana asks. Whoever may make roles applies this once, before events-to-postgres first connects,
-- with a password of their own.
CREATE ROLE grafana LOGIN PASSWORD 'grafana';
ALTER ROLE grafana SET statement_timeout = '30s';
