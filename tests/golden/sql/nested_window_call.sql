INSERT INTO emoji_counts
SELECT w.start, w.end, 'all', 'all', n, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS w, sum(count) AS n
      FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS count FROM reactions GROUP BY window, room)
      GROUP BY 1);
