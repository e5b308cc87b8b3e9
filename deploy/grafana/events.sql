-- Result events, one row each, and the view for the dashboard "outcomes by brand".
-- events-to-postgres applies this when it starts; it may be applied again at any time.

CREATE TABLE IF NOT EXISTS events (
  -- The same for every repeat of one result, so a repeat finds its row taken.
  id uuid PRIMARY KEY,
  time timestamptz NOT NULL CHECK (isfinite(time)),
  outcome text NOT NULL CHECK (outcome IN ('redeemed', 'refused', 'invalid', 'unresolved')),
  -- What an invalid command did not say is null.
  brand_id text,
  coupon_code text,
  out_request_no text,
  attempts integer NOT NULL,
  -- The oldest call that the event remembers, of at most 16.
  first_asked timestamptz,
  -- Why the outcome is not redeemed.
  reason text,
  http_status integer,
  code text,
  message text
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (time);
CREATE INDEX IF NOT EXISTS events_unresolved ON events (time) WHERE outcome = 'unresolved';
CREATE INDEX IF NOT EXISTS events_by_command ON events (coupon_code, out_request_no);

-- One row for each command: redeemed if any event says so, else refused, else unresolved. An invalid command has
-- no identity, so each of its events counts. The view computes this at query time, so the order of events and the number
-- of writers make no difference. Coupon codes stay in the table, and so do ids, which are made of them.
CREATE OR REPLACE VIEW outcomes AS
SELECT time, outcome, coalesce(nullif(brand_id, ''), 'unknown') AS brand_id, out_request_no, attempts, first_asked, reason,
  http_status, code, message
FROM events AS one
WHERE outcome IN ('redeemed', 'invalid') OR NOT EXISTS (
  SELECT FROM events AS other
  WHERE other.coupon_code = one.coupon_code AND other.out_request_no = one.out_request_no
    AND other.outcome <> 'invalid'
    AND (other.outcome = 'redeemed', other.outcome = 'refused', other.time, other.id)
      > (one.outcome = 'redeemed', one.outcome = 'refused', one.time, one.id)
);

-- A user who may view a dashboard may send any query to its data source, so Grafana's role sees only the view.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') THEN
    GRANT SELECT ON outcomes TO grafana;
  END IF;
END
$$;
