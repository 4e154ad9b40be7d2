CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (starts TIMESTAMP, team TEXT, n BIGINT, most BIGINT, users TEXT) WITH (connector = 'kafka', type = 'sink', format = 'json');

-- What else is asked for may leave all lines out: then the row stays, with nulls.
INSERT INTO answer
SELECT window.start, team, n, most, users
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, team, count(*) AS n, max(best) AS most,
             string_agg(user_id, ' ' ORDER BY user_id) AS users
      FROM (SELECT emoji AS e, team, max(weight) AS best FROM teams GROUP BY emoji, team) t
      RIGHT JOIN reactions ON emoji_type = e AND (best > 2 OR room = 'main') GROUP BY window, team);
