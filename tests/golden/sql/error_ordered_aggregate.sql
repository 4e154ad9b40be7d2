INSERT INTO emoji_counts
SELECT window.start, window.end, room, emojis, count, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS count,
             string_agg(emoji_type, ',' ORDER BY timestamp) AS emojis
      FROM reactions GROUP BY window, room);
