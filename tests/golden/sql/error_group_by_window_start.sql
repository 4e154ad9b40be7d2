INSERT INTO emoji_counts
SELECT start, start, 'main', '', n, 1
FROM (SELECT tumble(INTERVAL '2 seconds').start AS start, count(*) AS n FROM reactions GROUP BY 1);
