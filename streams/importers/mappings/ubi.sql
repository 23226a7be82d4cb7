-- User Behavior Insights 1.3 (ubisearch.dev): documents of `ubi_queries` and `ubi_events` in one file, plain or as a bulk file, where
-- a line {"index": ...} goes before each document. Times are ISO 8601 or milliseconds.
--   query       a document of ubi_queries or a search event: once for a query_id and a text, when it was first seen
--   impression  all that is known to have been shown for a query_id: the hits of its responses as they are ranked, behind them what
--               only impression events name, by their ordinal. Ordinals count from 0 or from 1, a position is the place in that list.
--   click       a click event on an object
-- Without a query_id, a search is an event of its own and its session may be the client's; an impression, hits and a click are refused,
-- each row for itself.
-- Actions that are neither are left out by name below; one that is not named there is refused by its type, so add yours.
WITH document AS (
    SELECT
        to_json(row) AS line,  -- what is used of it follows; a field that the log lacks is NULL
        from_json(line, '{
            "index": "JSON", "create": "JSON", "action_name": "VARCHAR", "query_id": "VARCHAR", "timestamp": "VARCHAR",
            "session_id": "VARCHAR", "client_id": "VARCHAR", "user_id": "VARCHAR", "user_query": "VARCHAR", "message": "VARCHAR",
            "query_response_hit_ids": ["VARCHAR"],
            "event_attributes": {
                "session_id": "VARCHAR", "object": {"object_id": "VARCHAR"}, "position": {"ordinal": "BIGINT"}
            }
        }') AS doc
    FROM log AS row
),
event AS NOT MATERIALIZED (
    SELECT
        coalesce(doc.action_name, 'query') AS action,  -- a document of ubi_queries has none
        nullif(doc.query_id, '') AS query_id,
        coalesce(epoch(try_cast(doc.timestamp AS TIMESTAMPTZ)), try_cast(doc.timestamp AS DOUBLE) / 1000) AS ts,
        coalesce(doc.session_id, doc.event_attributes.session_id) AS session_id,
        doc.client_id,
        coalesce(nullif(doc.user_id, ''), doc.client_id) AS user_id,
        nullif(doc.user_query, '') AS user_query,
        nullif(doc.message, '') AS message,
        doc.query_response_hit_ids AS hits,
        doc.event_attributes.object.object_id AS object_id,
        doc.event_attributes.position.ordinal AS ordinal,
        CASE  -- what will be refused is kept whole
            WHEN ts IS NULL
                OR query_id IS NULL AND coalesce(session_id, doc.client_id) IS NULL
                OR query_id IS NULL AND action IN ('click', 'click_through', 'item_click')
                OR action IN ('query', 'search', 'on_search') AND coalesce(doc.user_query, doc.message) IS NULL
                OR action NOT IN ('query', 'search', 'on_search', 'impression', 'click', 'click_through', 'item_click')
            THEN line
        END AS log_row,
        CASE WHEN query_id IS NULL AND (action = 'impression' OR len(hits) > 0) THEN line END AS list_row
    FROM document
    WHERE coalesce(doc.index, doc.create) IS NULL
      AND action NOT IN (
        'add_to_cart', 'purchase', 'watch', 'view', 'view_search_results', 'product_hover', 'product_sort', 'type_filter',
        'brand_filter', 'declined_product', 'page_exit', '404_redirect', 'login', 'logout',
        'global_click', 'button_click'  -- clicks, but on no object of a list
    )
),
search AS (  -- what is known of a query_id: documents of ubi_queries have no session, search events may lack the words
    SELECT
        query_id,
        min_by(session_id, ts) FILTER (session_id IS NOT NULL) AS session_id,
        min(client_id) AS client_id,
        coalesce(
            min_by(user_query, ts) FILTER (action = 'query' AND user_query IS NOT NULL),
            min_by(user_query, ts) FILTER (user_query IS NOT NULL),
            min_by(message, ts) FILTER (action IN ('search', 'on_search') AND message IS NOT NULL)
        ) AS query
    FROM event
    WHERE query_id IS NOT NULL
    GROUP BY query_id
),
query_row AS (
    SELECT *, CASE action WHEN 'query' THEN user_query ELSE coalesce(message, user_query) END AS query
    FROM event
    WHERE action IN ('query', 'search', 'on_search')
),
query AS (
    SELECT
        query_id, md5(concat_ws(' ', 'query', query_id, query)) AS event_id, min(ts) AS ts, min(session_id) AS session_id,
        min(user_id) AS user_id, query, min(log_row) AS log_row
    FROM query_row
    WHERE query_id IS NOT NULL
    GROUP BY query_id, query
    UNION ALL BY NAME
    SELECT
        NULL AS query_id, CASE WHEN log_row IS NULL THEN md5(concat_ws(' ', 'query', client_id, session_id, ts, query)) END AS event_id,
        ts, coalesce(session_id, client_id) AS session_id, user_id, query, log_row
    FROM query_row
    WHERE query_id IS NULL
),
shown AS (
    SELECT query_id, ts, unnest(hits) AS object_id, ts AS answered, generate_subscripts(hits, 1) AS rank
    FROM event
    WHERE query_id IS NOT NULL
    UNION ALL BY NAME
    SELECT query_id, ts, object_id, ordinal AS rank FROM event WHERE action = 'impression' AND query_id IS NOT NULL
),
list AS (
    SELECT query_id, min(ts) AS ts, array_agg(object_id ORDER BY answered NULLS LAST, rank, ts, object_id) AS items
    FROM (
        SELECT
            query_id, object_id, min(ts) AS ts, min(answered) AS answered,
            coalesce(min(rank) FILTER (answered IS NOT NULL), min(rank)) AS rank
        FROM shown
        GROUP BY query_id, object_id
    )
    GROUP BY query_id
)
SELECT
    'query' AS type, event_id, ts, coalesce(query.session_id, search.session_id, client_id) AS session_id, user_id,
    query.query, log_row
FROM query LEFT JOIN search USING (query_id)
UNION ALL BY NAME
SELECT
    'impression' AS type, md5(concat('impression ', query_id)) AS event_id, list.ts,
    coalesce(search.session_id, search.client_id) AS session_id, search.client_id AS user_id, search.query,
    query_id AS impression_id, items
FROM list LEFT JOIN search USING (query_id)
UNION ALL BY NAME
SELECT
    'click' AS type, event.ts,
    CASE WHEN query_id IS NOT NULL THEN md5(concat_ws(' ', 'click', query_id, event.session_id, event.ts, object_id)) END AS event_id,
    coalesce(search.session_id, event.session_id, event.client_id) AS session_id, user_id,
    coalesce(search.query, event.user_query) AS query,
    query_id AS impression_id, coalesce(list_position(items, object_id) - 1, ordinal) AS position, object_id AS item, log_row
FROM event LEFT JOIN search USING (query_id) LEFT JOIN list USING (query_id)
WHERE action IN ('click', 'click_through', 'item_click')
UNION ALL BY NAME
SELECT 'impression' AS type, ts, coalesce(session_id, client_id) AS session_id, user_id, user_query AS query, list_row AS log_row
FROM event
WHERE list_row IS NOT NULL
UNION ALL BY NAME
SELECT action AS type, ts, session_id, user_id, user_query AS query, log_row  -- refused by its type
FROM event
WHERE action NOT IN ('query', 'search', 'on_search', 'impression', 'click', 'click_through', 'item_click')
ORDER BY ts, type DESC
