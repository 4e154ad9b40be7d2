CREATE TABLE teams (emoji TEXT NOT NULL, team TEXT, weight BIGINT) WITH (connector = 'single_file', path = 'teams.json', type = 'source', format = 'json');
CREATE TABLE answer (user TEXT, emoji TEXT, team TEXT, other TEXT) WITH (connector = 'kafka', type = 'sink', format = 'json');

-- The same table twice, under two names.
INSERT INTO answer
SELECT user_id, emoji_type, a.team, b.emoji
FROM reactions JOIN teams a ON emoji_type = a.emoji JOIN teams b ON a.team = b.team AND b.emoji <> emoji_type
WHERE room = 'main';
