-- Google Analytics 4 as exported to BigQuery and from there to JSON lines or Parquet (support.google.com/analytics/answer/7029846):
-- `view_search_results`, `view_item_list` and `select_item`; all other events are left out.
-- A list belongs to the session's latest search, at most 30 minutes before it. A click belongs to the session's latest list of the same
-- item_list_id that held the item; its position is the item's place in that event, which a long list may have several of.
WITH export AS (
    SELECT
        to_json(row) AS line,  -- what is used of it follows; a field that the log lacks is NULL
        from_json(line, '{
            "event_name": "VARCHAR", "event_timestamp": "BIGINT", "user_pseudo_id": "VARCHAR",
            "event_params": [{"key": "VARCHAR", "value": {"string_value": "VARCHAR", "int_value": "VARCHAR"}}],
            "items": [{"item_id": "VARCHAR", "item_name": "VARCHAR", "item_list_id": "VARCHAR", "item_list_name": "VARCHAR"}]
        }') AS doc
    FROM log AS row
),
event AS (
    SELECT
        line,
        doc.event_name AS event,
        doc.event_timestamp / 1000000 AS ts,
        doc.user_pseudo_id AS user_id,
        list_filter(doc.event_params, lambda param: param.key = 'ga_session_id')[1].value.int_value AS visit,
        concat_ws('.', doc.user_pseudo_id, visit) AS session_id,
        list_filter(doc.event_params, lambda param: param.key = 'search_term')[1].value.string_value AS query,
        list_transform(doc.items, lambda item: coalesce(nullif(item.item_id, '(not set)'), item.item_name)) AS items,
        coalesce(doc.items[1].item_list_id, doc.items[1].item_list_name, '') AS list
    FROM export
    WHERE doc.event_name IN ('view_search_results', 'view_item_list', 'select_item')
),
search AS (
    SELECT session_id, ts, query FROM event WHERE event = 'view_search_results' AND ts IS NOT NULL
),
list AS (
    SELECT
        event.* EXCLUDE (query),
        coalesce(event.query, CASE WHEN event.ts - search.ts <= 1800 THEN search.query END) AS query,
        md5(concat_ws(' ', 'list', event.session_id, event.ts, list, items)) AS impression_id
    FROM event ASOF LEFT JOIN search ON event.session_id = search.session_id AND event.ts >= search.ts
    WHERE event.event = 'view_item_list'
),
place AS (
    SELECT session_id, ts, list, impression_id, query, item, min(position) AS position
    FROM (SELECT *, unnest(items) AS item, generate_subscripts(items, 1) - 1 AS position FROM list)
    WHERE ts IS NOT NULL
    GROUP BY ALL
)
SELECT
    'query' AS type, ts, session_id, user_id, query,
    CASE WHEN ts IS NULL OR query IS NULL THEN line END AS log_row  -- what will be refused, whole
FROM event
WHERE event = 'view_search_results'
UNION ALL BY NAME
SELECT
    'impression' AS type, impression_id AS event_id, ts, session_id, user_id, query, impression_id, items,
    CASE WHEN ts IS NULL OR query IS NULL THEN line END AS log_row
FROM list
UNION ALL BY NAME
SELECT
    'click' AS type, event.ts, event.session_id, user_id, place.query, place.impression_id, position, event.items[1] AS item,
    CASE WHEN place.query IS NULL THEN line END AS log_row
FROM event ASOF LEFT JOIN place
    ON event.session_id = place.session_id AND event.list = place.list AND event.items[1] = place.item AND event.ts >= place.ts
WHERE event.event = 'select_item'
ORDER BY ts, type DESC
