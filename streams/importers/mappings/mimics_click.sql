-- A click log in the form of MIMICS-Click (Zamani et al. 2020), tab-separated: one row a clarification pane, its options in columns,
-- each with its share of clicks.
--   query  question  option_1 ... option_5  impression_level  engagement_level  option_cctr_1 ... option_cctr_5
-- That log has neither times nor sessions nor single clicks: each row becomes one impression at one time, and an option with a share
-- over 0 counts as clicked in it. Ratios between positions keep a meaning, absolute click rates have none.
WITH pane AS (
    SELECT
        *,
        md5('pane ' || row_number() OVER () || ' ' || to_json(log)) AS id,  -- two equal rows are two panes
        list_filter(
            [
                {'item': option_1, 'share': option_cctr_1}, {'item': option_2, 'share': option_cctr_2},
                {'item': option_3, 'share': option_cctr_3}, {'item': option_4, 'share': option_cctr_4},
                {'item': option_5, 'share': option_cctr_5}
            ],
            lambda option: option.item IS NOT NULL
        ) AS options
    FROM log
),
click AS (
    SELECT *, unnest(options) AS clicked, generate_subscripts(options, 1) - 1 AS position FROM pane
)
SELECT
    'impression' AS type, id AS event_id, TIMESTAMPTZ '2020-06-01 12:00:00Z' AS ts, id AS session_id, query, id AS impression_id,
    list_transform(options, lambda option: option.item) AS items, 'refine' AS task, question, impression_level
FROM pane
UNION ALL BY NAME
SELECT
    'click' AS type, md5(id || ' ' || position) AS event_id, TIMESTAMPTZ '2020-06-01 12:00:00Z' AS ts, id AS session_id, query,
    id AS impression_id, position, clicked.item AS item
FROM click
WHERE try_cast(clicked.share AS DOUBLE) > 0
