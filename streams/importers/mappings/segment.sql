-- Segment's track calls as its raw logs hold them, JSON lines (segment.com/docs/connections/spec/ecommerce/v2): `Products Searched`,
-- `Product List Viewed` and `Product Clicked`; all other calls are left out.
-- A list belongs to the visitor's latest search, at most 30 minutes before it. A click belongs to the latest list of that visitor that
-- held the product; its position is the product's place in that list. Products are known by product_id, else sku, else name.
WITH call AS (
    SELECT
        to_json(row) AS line,  -- what is used of it follows; a field that the log lacks is NULL
        from_json(line, '{
            "event": "VARCHAR", "messageId": "VARCHAR", "timestamp": "VARCHAR", "anonymousId": "VARCHAR", "userId": "VARCHAR",
            "properties": {
                "query": "VARCHAR", "product_id": "VARCHAR", "sku": "VARCHAR", "name": "VARCHAR",
                "products": [{"product_id": "VARCHAR", "sku": "VARCHAR", "name": "VARCHAR"}]
            }
        }') AS doc
    FROM log AS row
),
event AS (
    SELECT
        line,
        doc.event,
        doc.messageId AS id,
        epoch(try_cast(doc.timestamp AS TIMESTAMPTZ)) AS ts,
        coalesce(doc.anonymousId, doc.userId) AS session_id,
        doc.userId AS user_id,
        doc.properties.query,
        coalesce(doc.properties.product_id, doc.properties.sku, doc.properties.name) AS item,
        list_transform(doc.properties.products, lambda product: coalesce(product.product_id, product.sku, product.name)) AS items
    FROM call
    WHERE doc.event IN ('Products Searched', 'Product List Viewed', 'Product Clicked')
),
search AS (
    SELECT session_id, ts, query FROM event WHERE event = 'Products Searched' AND ts IS NOT NULL
),
list AS (
    SELECT
        event.* EXCLUDE (query, item),
        coalesce(event.query, CASE WHEN event.ts - search.ts <= 1800 THEN search.query END) AS query
    FROM event ASOF LEFT JOIN search ON event.session_id = search.session_id AND event.ts >= search.ts
    WHERE event.event = 'Product List Viewed'
),
place AS (
    SELECT session_id, ts, id AS impression_id, query, item, min(position) AS position
    FROM (SELECT *, unnest(items) AS item, generate_subscripts(items, 1) - 1 AS position FROM list)
    WHERE ts IS NOT NULL
    GROUP BY ALL
)
SELECT
    'query' AS type, id AS event_id, ts, session_id, user_id, query,
    CASE WHEN ts IS NULL OR query IS NULL THEN line END AS log_row  -- what will be refused, whole
FROM event
WHERE event = 'Products Searched'
UNION ALL BY NAME
SELECT
    'impression' AS type, id AS event_id, ts, session_id, user_id, query, id AS impression_id, items,
    CASE WHEN ts IS NULL OR query IS NULL THEN line END AS log_row
FROM list
UNION ALL BY NAME
SELECT
    'click' AS type, event.id AS event_id, event.ts, event.session_id, user_id, place.query, place.impression_id, position, event.item,
    CASE WHEN place.query IS NULL THEN line END AS log_row
FROM event ASOF LEFT JOIN place
    ON event.session_id = place.session_id AND event.item = place.item AND event.ts >= place.ts
WHERE event.event = 'Product Clicked'
ORDER BY ts, type DESC
