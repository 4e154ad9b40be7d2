-- Branches of different windows are written side by side; those of one window together.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, 'all', count, 2
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS count FROM reactions GROUP BY 1, 2)
UNION ALL
SELECT window.start, window.end, room, 'all', count, 10
FROM (SELECT hop(INTERVAL '2 seconds', INTERVAL '10 seconds') AS window, room, count(*) AS count
      FROM reactions GROUP BY 1, 2);
