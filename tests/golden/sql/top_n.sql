INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, rank
FROM (
  SELECT window, room, emoji_type, count, row_number() OVER (PARTITION BY window, room ORDER BY count DESC) AS rank
  FROM (
    SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
    FROM reactions GROUP BY window, room, emoji_type
  )
)
WHERE rank <= 3;
