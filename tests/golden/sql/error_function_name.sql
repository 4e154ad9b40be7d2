INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, cuont(*), 1
FROM (SELECT tumbl(INTERVAL '2 seconds') AS window, room, emoji_type, emoji_base(room) AS count
      FROM reactions GROUP BY window, room, emoji_type);
