CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO emoji_counts
SELECT window.start, window.end, team, emoji, n, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, team, emoji, count(*) AS n
      FROM reactions JOIN teams ON emoji < emoji_type AND team = 'x' GROUP BY 1, 2, 3);
