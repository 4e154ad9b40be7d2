INSERT INTO emoji_counts
SELECT window.start, window.end, 'all', 'all', sum(window), 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS count FROM reactions GROUP BY window, room)
GROUP BY window;
