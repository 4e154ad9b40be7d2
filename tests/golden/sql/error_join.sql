-- A join of reactions as they come.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count(*), 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, a.room, a.emoji_type
      FROM reactions a JOIN reactions b ON a.user_id = b.user_id)
GROUP BY window, room, emoji_type;
