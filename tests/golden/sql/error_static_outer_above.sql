CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO emoji_counts
SELECT window.start, window.end, team, emoji, n, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY 1, 2)
FULL JOIN teams ON emoji = emoji_type;
