-- The shipped query.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count,
       CASE WHEN count > 1000 THEN count / 1000 ELSE 1 END AS scaled
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FROM reactions
  GROUP BY window, room, emoji_type
);
