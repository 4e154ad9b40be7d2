-- Joined rows are told apart by the keys of both sides; the second function has them all.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, place, other
FROM (SELECT a.window, a.room, a.emoji_type,
             row_number() OVER (PARTITION BY a.window ORDER BY b.n DESC, b.room) AS place,
             row_number() OVER (PARTITION BY a.window, b.room ORDER BY a.n, a.emoji_type) AS other
      FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS n FROM reactions GROUP BY 1, 2, 3) a
      JOIN (SELECT tumble(INTERVAL '2 seconds') AS window, room, count(*) AS n FROM reactions GROUP BY 1, 2) b
      ON a.window = b.window AND a.room = b.room)
WHERE place <= 3;
