CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, team TEXT, n BIGINT, place BIGINT) WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, team, n, place
FROM (SELECT window, team, n, row_number() OVER (PARTITION BY window ORDER BY n DESC, team) AS place
      FROM (SELECT c.window, t.team, sum(c.n) AS n
            FROM (SELECT tumble(INTERVAL '2 seconds') AS window, emoji_type, count(*) AS n FROM reactions GROUP BY 1, 2) c
            JOIN teams t ON t.emoji = c.emoji_type AND t.team IS NOT NULL GROUP BY c.window, t.team));
