CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT) WITH (connector = 'single_file', path = 'teams.json', type = 'source');
INSERT INTO teams SELECT window.end, room FROM (SELECT tumble(INTERVAL '2 seconds') AS window, room FROM reactions GROUP BY 1, 2);
