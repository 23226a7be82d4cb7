-- A query log in the form of AOL's (2006), tab-separated: one row a search, one more for each result of it that was clicked.
--   AnonID  Query  QueryTime  ItemRank  ClickURL
-- The clicks are on web results, not on recommended queries: what the log tells is which query follows which.
SELECT DISTINCT  -- the rows of one search are one event
    'query' AS type,
    try_strptime(QueryTime, '%Y-%m-%d %H:%M:%S') AT TIME ZONE 'America/New_York' AS ts,
    AnonID AS session_id,  -- 30 minutes without a search part two sessions anyway
    AnonID AS user_id,
    nullif(Query, '-') AS query,  -- how that log writes a query it does not tell
    CASE WHEN ts IS NULL OR Query IS NULL OR Query = '-' THEN to_json(log) END AS log_row  -- what was refused, whole
FROM log
ORDER BY ts
