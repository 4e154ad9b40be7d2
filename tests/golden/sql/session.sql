-- A window per burst of a room's reactions.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT session(INTERVAL '30 seconds') AS window, room, max(emoji_type) AS emoji_type, count(*) AS count
      FROM reactions GROUP BY 1, 2);
