CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, ends TIMESTAMP, team TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink', format = 'json');

-- A row may be in a session of each team; it counts once in the figures.
INSERT INTO answer
SELECT window.start, window.end, team, n
FROM (SELECT session(INTERVAL '1 second') AS window, team, count(*) AS n
      FROM reactions JOIN teams ON emoji_type = emoji GROUP BY window, team);
