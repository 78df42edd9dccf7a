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
    channel text NOT NULL CHECK (channel <> ''),
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

-- Wakes the server, at most once in 5 ms: commits that notify wait for each other. A clock that was set
-- back must not silence the bell. Called by the functions below, with their rights: nobody else may. Returns
-- whether it rang, since an assignment costs less than a PERFORM.
CREATE FUNCTION repeater.ring() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    -- Neither a query nor a `numeric`: each would cost as much as all the rest.
    now_ms bigint := date_part('epoch', clock_timestamp()) * 1000;
BEGIN
    IF now_ms - pg_sequence_last_value('repeater.bell') BETWEEN -1000 AND 5 THEN
        RETURN false;
    END IF;
    PERFORM setval('repeater.bell', now_ms);
    PERFORM pg_notify('repeater_outgoing', '');
    RETURN true;
END $$;

-- For roles that publish -------------------------------------------------------------------------

-- Publishes with the transaction that calls it: after the commit, or not at all. Returns the number of the
-- row. What is prepared for a two-phase commit must not wake the server: PostgreSQL refuses it.
CREATE FUNCTION repeater.publish(
    channel text, data jsonb, key text DEFAULT NULL, version numeric DEFAULT NULL,
    version_epoch text DEFAULT NULL, wake boolean DEFAULT true, tags jsonb DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made bigint;
    rang boolean;
BEGIN
    INSERT INTO repeater.outgoing (channel, data, key, version, version_epoch, tags)
    VALUES (publish.channel, publish.data::text, publish.key, publish.version,
            publish.version_epoch, publish.tags::text)
    RETURNING id INTO made;
    IF wake THEN
        rang := repeater.ring();
    END IF;
    RETURN made;
END $$;

-- Publishes several in this order, as `publish` does; data number N goes to channel number N. Returns the
-- numbers of the rows.
CREATE FUNCTION repeater.publish_many(channels text[], datas jsonb[], wake boolean DEFAULT true)
RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made bigint[];
    rang boolean;
BEGIN
    IF cardinality(channels) IS DISTINCT FROM cardinality(datas) THEN
        RAISE EXCEPTION 'publish_many needs as many datas as channels' USING ERRCODE = '22023';
    END IF;
    WITH i AS (
        INSERT INTO repeater.outgoing (channel, data)
        SELECT u.channel, u.data::text
        FROM unnest(channels, datas) WITH ORDINALITY AS u (channel, data, n) ORDER BY u.n
        RETURNING id
    )
    SELECT coalesce(array_agg(i.id ORDER BY i.id), '{}') INTO made FROM i;
    IF wake AND cardinality(made) > 0 THEN
        rang := repeater.ring();
    END IF;
    RETURN made;
END $$;

-- For triggers: `FOR EACH ROW EXECUTE FUNCTION repeater.publish_row('orders:', 'id')` publishes each row that
-- is written as {"operation": "INSERT", "row": {...}} to the channel 'orders:' and the value of `id`.
-- Not with the owner's rights: to_jsonb calls functions of the row's types, which anybody may make. So who
-- changes the table needs the right to publish, too.
CREATE FUNCTION repeater.publish_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written jsonb;
BEGIN
    IF TG_NARGS <> 2 OR TG_LEVEL <> 'ROW' THEN
        RAISE EXCEPTION 'publish_row needs FOR EACH ROW, a prefix and the name of a column'
            USING ERRCODE = '39P01';
    END IF;
    IF TG_OP = 'DELETE' THEN
        written := to_jsonb(OLD);
    ELSE
        written := to_jsonb(NEW);
    END IF;
    IF written ->> TG_ARGV[1] IS NULL THEN
        RAISE EXCEPTION 'publish_row finds no value in the column %', TG_ARGV[1]
            USING ERRCODE = '39P01';
    END IF;
    PERFORM repeater.publish(TG_ARGV[0] || (written ->> TG_ARGV[1]),
        jsonb_build_object('operation', TG_OP, 'row', written));
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;

-- For the server ---------------------------------------------------------------------------------

-- Rows to publish, in their order: those that became visible since `seen` was given, or all but those of
-- `skip` (without a `seen`, or `again`); at most `most`, and no more once they have `bytes` bytes. One larger
-- than `largest`, all its texts counted, comes without them. A row that was visible in `seen` is `missed`.
-- The last row has no id: its `now_seen` is for the next call. It is missing if there was more than was given.
CREATE FUNCTION repeater.take(
    seen pg_snapshot, skip bigint[], most integer, bytes bigint, largest integer,
    again boolean DEFAULT false
) RETURNS TABLE (
    id bigint, at_us bigint, channel text, data text, size bigint, key text, version text,
    version_epoch text, tags text, missed boolean, now_seen text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
    seen_now pg_snapshot;
    given bigint;
BEGIN
    IF seen IS NULL OR again THEN
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
    SELECT r.id, (extract(epoch FROM r.at) * 1000000)::bigint,
        CASE WHEN r.size <= largest THEN r.channel ELSE left(r.channel, 300) END,
        CASE WHEN r.size <= largest THEN r.data END, r.size,
        CASE WHEN r.size <= largest THEN r.key END, r.version::text,
        CASE WHEN r.size <= largest THEN r.version_epoch END,
        CASE WHEN r.size <= largest THEN r.tags END,
        coalesce(pg_visible_in_snapshot(r.xid, seen), false), NULL
    FROM (
        SELECT s.*, sum(s.size) OVER (ORDER BY s.id) AS total FROM (
            SELECT o.*, octet_length(o.channel)::bigint + octet_length(o.data)
                + coalesce(octet_length(o.tags), 0) + coalesce(octet_length(o.key), 0)
                + coalesce(octet_length(o.version_epoch), 0) AS size
            FROM repeater.outgoing o WHERE o.id = ANY (ids)
        ) s
    ) r
    WHERE r.total - r.size < bytes
    ORDER BY r.id LIMIT most;
    GET DIAGNOSTICS given = ROW_COUNT;
    -- Only who was given all may ask for what is new since then.
    IF given = cardinality(ids) THEN
        RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL, NULL, NULL::bigint, NULL, NULL, NULL,
            NULL, NULL::boolean, seen_now::text;
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
        SELECT d.id, left(d.channel, 1000), left(d.data, 10000), left(d.key, 1000), d.at, r.reason
        FROM d JOIN r USING (id)
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) INTO gone FROM d;
    IF cardinality(refused) > 0 THEN
        DELETE FROM repeater.refused f WHERE f.id <= (
            SELECT x.id FROM repeater.refused x ORDER BY x.id DESC OFFSET 10000 LIMIT 1);
    END IF;
    RETURN gone;
END $$;

-- What there is, for people who watch it: seconds since the oldest row was published (NULL without rows),
-- rows (counted to 10,000), and seconds since the oldest snapshot that keeps the database from tidying up,
-- as far as this role may see it.
CREATE FUNCTION repeater.state() RETURNS TABLE (
    oldest_seconds double precision, waiting bigint, snapshot_seconds double precision
)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off AS $$
    SELECT extract(epoch FROM clock_timestamp() - min(o.at))::double precision, count(*),
        (SELECT extract(epoch FROM clock_timestamp() - min(began)) FROM (
            SELECT xact_start FROM pg_stat_activity
                WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
            UNION ALL SELECT prepared FROM pg_prepared_xacts
        ) AS snapshots (began))::double precision
    FROM (SELECT at FROM repeater.outgoing ORDER BY id LIMIT 10000) AS o
$$;

-- Which of these rows are still there: '<id>-<when it was published, in microseconds>'.
CREATE FUNCTION repeater.remaining(names text[]) RETURNS text[]
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off AS $$
    SELECT coalesce(array_agg(n.name), '{}')
    FROM unnest(names) AS n (name) JOIN repeater.outgoing o
        ON o.id = split_part(n.name, '-', 1)::bigint
        AND (extract(epoch FROM o.at) * 1000000)::bigint = split_part(n.name, '-', 2)::bigint
$$;

-- A number for who begins to lead, higher than all before and than `above`. The clock's microseconds, so that it
-- is higher also where a failover has lost the last ones.
CREATE FUNCTION repeater.next_term(above bigint) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT setval('repeater.term', greatest(
        (SELECT t.last_value FROM repeater.term t) + 1, above + 1,
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))
$$;

-- Nearly all functions act with the rights of their owner, so nobody else may call them without a grant.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA repeater FROM PUBLIC;

INSERT INTO repeater.settings (version) VALUES (1);
