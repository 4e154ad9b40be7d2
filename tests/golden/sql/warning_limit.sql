-- Which of several emojis of the same count are among the ten? The window is the same for all.
INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, count, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS count
      FROM reactions GROUP BY window, room, emoji_type)
ORDER BY count DESC, window.start LIMIT 10;
