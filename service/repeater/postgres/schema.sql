-- Repeater's part of a database: what transactions publish, until the server has taken it over.
-- PostgreSQL 14 or later, no extension.
--
-- A publication is one INSERT into `outgoing`, in the transaction that calls `publish`: it takes no
-- number that others wait for, and no lock. The server looks for rows that it could not see before
-- (`take`), publishes them, and has them removed (`done`).

CREATE SCHEMA repeater;

CREATE TABLE repeater.settings (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    -- Names this outbox in the engine, where the rows that were published are noted.
    source uuid NOT NULL DEFAULT gen_random_uuid()
);

CREATE TABLE repeater.outgoing (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    channel text NOT NULL,
    data text NOT NULL,
    tags text,
    key text,
    version numeric(20),
    version_epoch text,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
    -- Nearly all rows are dead ones: they are counted, not measured by the size of the table. And
    -- `take` is planned without statistics.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 2000000000
);
CREATE INDEX outgoing_xid ON repeater.outgoing (xid);

-- What the server can never publish, with the reason; the newest 10,000.
CREATE TABLE repeater.refused (
    id bigint PRIMARY KEY,
    channel text NOT NULL,
    data text NOT NULL,
    key text,
    at timestamptz NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason text NOT NULL
);

-- The milliseconds at which the server was woken last. A sequence, because its value is seen and
-- set outside of transactions: publishers do not wait for each other.
CREATE SEQUENCE repeater.bell MINVALUE 0 START 0;
-- The number of the node that leads: each one that begins to take has a higher one.
CREATE SEQUENCE repeater.term MINVALUE 0 START 0;

-- For roles that publish -------------------------------------------------------------------------

-- Publishes with the transaction that calls it: after the commit, or not at all. Wakes the server, at
-- most once in 5 ms: commits that notify wait for each other. Returns the number of the row.
CREATE FUNCTION repeater.publish(
    channel text, data jsonb, key text DEFAULT NULL, version numeric DEFAULT NULL,
    version_epoch text DEFAULT NULL, wake boolean DEFAULT true, tags jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made bigint;
    now_ms bigint;
BEGIN
    INSERT INTO repeater.outgoing (channel, data, key, version, version_epoch, tags)
    VALUES (publish.channel, publish.data::text, publish.key, publish.version,
            publish.version_epoch, publish.tags::text)
    RETURNING id INTO made;
    IF wake THEN
        -- A clock that was set back must not silence the bell.
        now_ms := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
        IF now_ms - (SELECT b.last_value FROM repeater.bell b) NOT BETWEEN -1000 AND 5 THEN
            PERFORM setval('repeater.bell', now_ms);
            PERFORM pg_notify('repeater_outgoing', '');
        END IF;
    END IF;
    RETURN made;
END $$;

-- For the server ---------------------------------------------------------------------------------

-- Rows to publish, in their order: those that became visible since `seen` was given, or all but those of
-- `skip` without a `seen`; at most `most`, and no more once they have `bytes` bytes. One larger than
-- `largest` comes without its data. The last row has no id: its `now_seen` is for the next call. It is
-- missing if there was more than was given.
CREATE FUNCTION repeater.take(
    seen pg_snapshot, skip bigint[], most integer, bytes bigint, largest integer
) RETURNS TABLE (
    id bigint, at_us bigint, channel text, data text, size bigint, key text, version text,
    version_epoch text, tags text, now_seen text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
    seen_now pg_snapshot;
    given bigint;
BEGIN
    IF seen IS NULL THEN
        SELECT ARRAY(
            SELECT o.id FROM repeater.outgoing o
            WHERE NOT EXISTS (SELECT FROM unnest(skip) AS s (id) WHERE s.id = o.id)
            ORDER BY o.id LIMIT most + 1
        ), pg_current_snapshot() INTO ids, seen_now;
    ELSE
        WITH fresh AS MATERIALIZED (
            SELECT o.id FROM repeater.outgoing o
            WHERE o.xid >= pg_snapshot_xmax(seen)
                OR o.xid = ANY (ARRAY(SELECT pg_snapshot_xip(seen)))
        )
        SELECT ARRAY(SELECT f.id FROM fresh f ORDER BY f.id LIMIT most + 1), pg_current_snapshot()
        INTO ids, seen_now;
    END IF;
    RETURN QUERY
    SELECT r.id, (extract(epoch FROM r.at) * 1000000)::bigint, r.channel,
        CASE WHEN r.size <= largest THEN r.data END, r.size,
        r.key, r.version::text, r.version_epoch, r.tags, NULL
    FROM (
        SELECT o.*, octet_length(o.data)::bigint AS size,
            sum(octet_length(o.data)) OVER (ORDER BY o.id) AS total
        FROM repeater.outgoing o WHERE o.id = ANY (ids)
    ) r
    WHERE r.total - r.size < bytes
    ORDER BY r.id LIMIT most;
    GET DIAGNOSTICS given = ROW_COUNT;
    -- Only who was given all may ask for what is new since then.
    IF given = cardinality(ids) THEN
        RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL, NULL, NULL::bigint, NULL, NULL, NULL,
            NULL, seen_now::text;
    END IF;
END $$;

-- Removes rows that are published, and moves those that are refused aside, with the reasons.
CREATE FUNCTION repeater.done(ids bigint[], refused bigint[], reasons text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    gone bigint;
BEGIN
    WITH r AS (SELECT * FROM unnest(refused, reasons) AS u (id, reason)),
    d AS (DELETE FROM repeater.outgoing o WHERE o.id = ANY (ids || refused) RETURNING o.*),
    i AS (
        INSERT INTO repeater.refused (id, channel, data, key, at, reason)
        SELECT d.id, d.channel, left(d.data, 10000), d.key, d.at, r.reason FROM d JOIN r USING (id)
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO gone FROM d;
    IF cardinality(refused) > 0 THEN
        DELETE FROM repeater.refused f WHERE f.id <= (
            SELECT x.id FROM repeater.refused x ORDER BY x.id DESC OFFSET 10000 LIMIT 1);
    END IF;
    RETURN gone;
END $$;

-- The functions act with the rights of their owner, so nobody else may call them without a grant.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA repeater FROM PUBLIC;

INSERT INTO repeater.settings (version) VALUES (1);
