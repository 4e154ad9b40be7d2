INSERT INTO emoji_counts
SELECT window.start, window.end, room, room, count, 1
FROM (SELECT tumble(INTERVAL INTERVAL INTERVAL INTERVAL INTERVAL INTERVAL '2 seconds') AS window, room, count(*) AS count FROM reactions GROUP BY window, room);
