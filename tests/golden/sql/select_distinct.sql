INSERT INTO emoji_counts
SELECT window.start, window.end, room, emoji_type, 1, 1
FROM (SELECT DISTINCT tumble(INTERVAL '2 seconds') AS window, room, emoji_type FROM reactions);
