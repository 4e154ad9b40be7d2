CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO emoji_counts
SELECT window.start, window.end, room, team, n, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room, emoji_type, count(*) AS n FROM reactions GROUP BY 1, 2, 3) c
LEFT JOIN teams t ON t.emoji = c.emoji_type
ORDER BY n DESC, room, emoji_type LIMIT 3;
