CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, team TEXT, n BIGINT) WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, team, n
FROM (SELECT hop(INTERVAL '1 second', INTERVAL '3 seconds') AS window, coalesce(team, 'nobody') AS team, count(*) AS n
      FROM reactions JOIN (SELECT emoji AS emoji_type, team FROM teams) t USING (emoji_type) GROUP BY 1, 2);
