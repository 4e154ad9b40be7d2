INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, scaled FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, window.start AS s, room, emoji_type, count(*) AS count,
         CASE WHEN window.end > '2026-01-01' THEN 2 ELSE 1 END AS scaled
  FROM reactions GROUP BY window, room, emoji_type HAVING window.start > '2020-01-01'
);
