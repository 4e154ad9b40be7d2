CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, emoji TEXT, team TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT c.window.start, c.emoji_type, t.team, c.n * coalesce(t.weight, 1)
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY 1, 2) c
LEFT JOIN teams t ON c.emoji_type = t.emoji
WHERE c.n < 3;
