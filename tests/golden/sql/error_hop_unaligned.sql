-- Windows could not share their parts.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT hop(INTERVAL '2 seconds', INTERVAL '5 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY 1, 2, 3);
