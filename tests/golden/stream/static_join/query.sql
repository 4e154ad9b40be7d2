CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, team TEXT, room TEXT, n BIGINT, weight BIGINT) WITH (connector = 'kafka', type = 'sink', format = 'json');

-- The row that is left out behind the join is filtered, also where one of its copies was left out before.
INSERT INTO answer
SELECT window.start, team, room, n, w
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, t.team, room, count(*) AS n, sum(t.weight) AS w
      FROM (SELECT * FROM reactions WHERE user_id <> 'nobody') r JOIN teams t ON r.emoji_type = t.emoji AND t.weight < 6
      WHERE room <> 'test' AND team || room <> 'blueside' GROUP BY window, t.team, room);
