INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, CASE WHEN count > 1000 THEN count / 1000 ELSE 1 END
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FROM reactions
  GROPU BY window, room, emoji_type
);
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FORM reactions
  GROUP BY window, room, emoji_type
);
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count,
       CASE WHEN count > 1000 THEN count / 1000 ELSE 1 AS scaled
FROM (
  SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
  FROM reactions
  GROUP BY window, room, emoji_type
);
