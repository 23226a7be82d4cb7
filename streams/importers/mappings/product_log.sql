-- A product's own log: the type of an event in a column, a list in several rows (one an item), clicks in rows of their own.
--   time_ms;what;session;user;search;list;rank;shown
WITH event AS (
    SELECT *, try_cast(time_ms AS BIGINT) / 1000 AS ts, try_cast(rank AS BIGINT) - 1 AS position  -- ranks count from 1
    FROM log
    WHERE what IS NULL OR what NOT IN ('scroll', 'leave')  -- left out: they tell nothing of queries and lists
),
list AS (
    SELECT
        list, min(ts) AS ts, min(session) AS session, min(user) AS user, min(search) AS search,
        array_agg(shown ORDER BY position) AS shown,
        array_agg(position ORDER BY position) = range(count(*)) AS whole,  -- no rank is missing, none comes twice
        to_json(array_agg(event)) AS rows
    FROM event
    WHERE what = 'item'
    GROUP BY list
)
SELECT
    'impression' AS type, md5('list ' || list) AS event_id, ts, session AS session_id, user AS user_id, search AS query,
    list AS impression_id, CASE WHEN whole THEN shown END AS items, CASE WHEN whole THEN NULL ELSE rows END AS log_rows
FROM list
UNION ALL BY NAME
SELECT
    CASE what WHEN 'search' THEN 'query' ELSE what END AS type,  -- any other event is refused by its type
    ts, session AS session_id, user AS user_id, search AS query, list AS impression_id,
    CASE what WHEN 'click' THEN position END AS position, shown AS item
FROM event
WHERE what IS NULL OR what <> 'item'
ORDER BY ts, type DESC
