CREATE TABLE answer (starts TIMESTAMP, emoji TEXT)
WITH (connector = 'kafka', type = 'sink', format = 'json');

INSERT INTO answer
SELECT window.start, emoji_type
FROM (SELECT DISTINCT tumble(INTERVAL '2 seconds') AS window, emoji_type FROM reactions);
