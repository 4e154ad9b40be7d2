INSERT INTO emoji_counts
SELECT window.start, n FROM (SELECT tumble(INTERVAL '2 seconds') AS window, count(*) AS n FROM reactions GROUP BY window);
