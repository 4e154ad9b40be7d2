CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO emoji_counts
SELECT window.start, window.end, team, 'x', n, 1
FROM (SELECT tumble(INTERVAL '2 seconds') AS window, team, count(*) AS n
      FROM reactions JOIN teams ON character_length(user_id) = X'00' AND nme = user_id GROUP BY 1, 2);
