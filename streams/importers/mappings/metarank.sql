-- Metarank's event files (docs.metarank.ai, "Supported events"): JSON lines of the kinds item, user, ranking and interaction.
-- A ranking with a field `query` is a search and the list that answered it; an interaction of type `click` is a click on an item of
-- the ranking that it names. Interactions of other types, and what is said of items and users, are left out.
WITH document AS (
    SELECT
        to_json(row) AS line,  -- what is used of it follows; a field that the log lacks is NULL
        from_json(line, '{
            "event": "VARCHAR", "id": "VARCHAR", "timestamp": "VARCHAR", "session": "VARCHAR", "user": "VARCHAR",
            "fields": [{"name": "VARCHAR", "value": "JSON"}], "items": [{"id": "VARCHAR"}],
            "ranking": "VARCHAR", "type": "VARCHAR", "item": "VARCHAR"
        }') AS doc
    FROM log AS row
),
event AS (
    SELECT
        line,
        doc.event AS kind,
        doc.id,
        coalesce(epoch(try_cast(doc.timestamp AS TIMESTAMPTZ)), try_cast(doc.timestamp AS DOUBLE) / 1000) AS ts,
        coalesce(doc.session, doc.user) AS session_id,
        doc.user AS user_id,
        list_filter(doc.fields, lambda field: field.name = 'query')[1].value->>'$' AS query,
        list_transform(doc.items, lambda item: item.id) AS items,
        doc.ranking AS ranking_id,
        doc.type AS action,
        doc.item
    FROM document
),
ranking AS (
    SELECT * FROM event WHERE kind = 'ranking'
)
SELECT 'query' AS type, 'query ' || id AS event_id, ts, session_id, user_id, query
FROM ranking
WHERE query IS NOT NULL  -- without one the list is refused below, and that says it
UNION ALL BY NAME
SELECT
    'impression' AS type, id AS event_id, ts, session_id, user_id, query, id AS impression_id, items,
    CASE WHEN ts IS NULL OR query IS NULL THEN line END AS log_row
FROM ranking
UNION ALL BY NAME
SELECT
    'click' AS type, event.id AS event_id, event.ts, coalesce(ranking.session_id, event.session_id) AS session_id, event.user_id,
    ranking.query, event.ranking_id AS impression_id, list_position(ranking.items, event.item) - 1 AS position, event.item,
    CASE WHEN event.ts IS NULL OR position IS NULL THEN event.line END AS log_row
FROM event LEFT JOIN ranking ON ranking.id = event.ranking_id
WHERE event.kind = 'interaction' AND event.action = 'click'
UNION ALL BY NAME
SELECT coalesce(kind, 'no event') AS type, id AS event_id, ts, session_id, user_id, line AS log_row  -- refused by its type
FROM event
WHERE kind IS NULL OR kind NOT IN ('item', 'user', 'ranking', 'interaction')
ORDER BY ts, type DESC
